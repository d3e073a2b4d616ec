"""What has to be right before anything is measured: the workers of tests/gpu on the GPU, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType

#: Channels that are checked on a GPU: few, since each is a compilation of some kernels. The tests check many more.
CHANNELS = (9, 33, 100, 768)
#: Under the sanitizer, which is tens of times slower: rows that end within a vector, and rows of whole ones. With the
#: same seed, so that nothing is compiled again.
SANITIZED = (33, 768)
#: Accesses outside of memory; threads of a block that do not wait for each other's accesses of shared memory.
SANITIZERS = ("memcheck", "racecheck")

#: Runs a command: (command, environment, seconds) -> exit code (None: out of time) and output.
Runner = Callable[[Sequence[str], dict[str, str], float], tuple[int | None, str]]


def run(command: Sequence[str], env: dict[str, str], seconds: float) -> tuple[int | None, str]:
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout[-2000:] + done.stderr[-4000:]


def sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")


class Checks:
    """Runs checks and keeps what they found: name -> {"passed": bool or None, "detail": text}, None if not run."""

    def __init__(self, root: Path, seed: int, left: Callable[[], float], runner: Runner = run):
        """`left` tells how many seconds there are; `root` is the checkout."""
        self.results: dict[str, dict[str, object]] = {}
        self._root, self._seed, self._left, self._run = root, seed, left, runner
        paths = [str(root / "tests"), str(root), str(root / "python"), os.environ.get("PYTHONPATH", "")]
        # The first configuration of every kernel is checked here, the chosen ones where rows are measured.
        self._env = {**os.environ, "BTR_TUNE": "0", "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def results_agree(self, backend: str, operators: Iterable[str], processes: int) -> None:
        """Every operator against its definition, several processes at a time: they mostly compile."""
        common = ["cuda", "--seed", str(self._seed), "--channels", ",".join(map(str, CHANNELS)), "--huge"]

        def one(operator: str) -> None:
            arguments = [backend, *common, "--operators", operator]
            self._worker(f"{backend} {operator}", "gpu.check_kernels", arguments, _failures)

        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(one, operators))

    def launches_and_memory(self, backends: Iterable[str]) -> None:
        """Streams, synchronisation, graphs and devices; beside it the kernels under the tools of compute-sanitizer."""
        sanitized = [partial(self._sanitized, name, tool) for name in backends for tool in SANITIZERS]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda check: check(), [self._launches, *sanitized]))

    def _launches(self) -> None:
        self._worker("streams, graphs and devices", "gpu.launches", ["cuda"], _launch_failures)

    def _sanitized(self, backend: str, tool: str) -> None:
        """On memory of their own: a caching allocator hides overruns."""
        name, program = f"{backend} under compute-sanitizer {tool}", sanitizer()
        if program is None:
            self.results[name] = {"passed": None, "detail": "compute-sanitizer is not installed"}
            return
        channels = ",".join(map(str, SANITIZED))
        arguments = [backend, "cuda", "--seed", str(self._seed), "--channels", channels]
        prefix = [program, "--tool", tool, "--error-exitcode", "99"]
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        self._worker(name, "gpu.check_kernels", arguments, _failures, prefix, env, most=120)

    def _worker(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        failures: Callable[[dict], list[str]],
        prefix: Sequence[str] = (),
        env: Mapping[str, str] = MappingProxyType({}),
        most: float = 240,
    ) -> None:
        command = [*prefix, sys.executable, "-m", module, *arguments]
        code, output = self._run(command, {**self._env, **env}, min(self._left(), most))
        if code is None:
            self.results[name] = {"passed": None, "detail": "out of time"}
        elif code != 0:
            self.results[name] = {"passed": False, "detail": output}
        else:
            # The sanitizer prints around what the worker does.
            reports = [line for line in output.splitlines() if line.startswith("{")]
            found = failures(json.loads(reports[-1])) if reports else ["the worker printed no report"]
            self.results[name] = {"passed": not found, "detail": "\n".join(found)}


def _failures(report: dict) -> list[str]:
    if not report:
        return ["nothing was checked"]
    return [
        f"{operator}, {d} channels: {failure}"
        for operator, found in report.items()
        for d, failure in found["failures"].items()
        if failure is not None and not failure.startswith("skip: ")
    ]


def _launch_failures(report: dict) -> list[str]:
    if not any(report.values()):
        return ["nothing was checked"]
    return [f"{check}, {call}: {why}" for check, calls in report.items() for call, why in calls.items() if why]
