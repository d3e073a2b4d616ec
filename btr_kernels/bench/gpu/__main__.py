"""Proves the kernels on this machine's GPU and measures them, offline, with the torch and Triton that are there.

    make gpu                                  # from the checkout; benchmarks/results/<gpu>/<date>.json and a table
    python -m btr_kernels.bench.gpu --help

Builds what can be built, checks every operator on every GPU backend, streams and graphs, measures every row of `rows`
against its peers and the machine's limits, and runs `btr bench`. What there is no time for is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ... import backends, use_backend
from . import report as reports
from .checks import Checks
from .rows import Row, all_rows, sets_past
from .timing import Cuda, Time, alternate, limits

ROOT = Path(__file__).parents[3]
#: Seconds for one row, compilation not counted, and those kept for what comes after the rows.
ROW_SECONDS, RESERVED = 1.5, 60.0
#: Peers of unpack_matmul at low precision that others ship. None could be run where these rows were written.
OTHER_PACKAGES = ("gemlite", "bitblas", "flashinfer")


def why_not() -> str | None:
    if not torch.cuda.is_available():
        return (
            "torch finds no CUDA device. `make gpu` is for a machine with one; `make test` tests the GPU kernels "
            "without: in Triton's interpreter, in an emulator of CUDA, and by their machine code."
        )
    return None


def current_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def build(root: Path, seconds: float) -> str:
    """Compile the CPU and CUDA kernels in place; what happened. Without them the Triton backend is measured alone."""
    if not (root / "setup.py").is_file():
        return "not built: no checkout"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "not built: out of time"
    if done.returncode == 0:
        return "built"
    return "not built: " + ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("triton", "btr-kernels", *OTHER_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def measure(row: Row, device: torch.device, cache: int, room: int, limits: dict[str, float]) -> dict[str, Any]:
    """The row's entry of the report.

    Raises:
        AssertionError: the result is not the reference's.
    """
    generator = torch.Generator(device).manual_seed(int.from_bytes(os.urandom(4), "little"))
    inputs = [row.make(generator, device)]
    row.ours(inputs[0])  # chooses the configuration that is then checked
    row.verify(inputs[0])
    inputs += [row.make(generator, device) for _ in range(sets_past(cache, row, room) - 1)]
    contenders = {"ours": row.ours, **row.peers}
    times: dict[str, Time] = alternate(contenders, inputs, Cuda(), ROW_SECONDS, time.perf_counter)
    return reports.row_result(row, times, limits)


def read(root: Path, shape: str, seconds: float) -> dict[str, Any]:
    """`btr bench` on the GPU."""
    try:
        from btr_reader.commands.bench import bench
    except ImportError as error:
        return {"error": f"not run: {error}"}
    if "device" not in inspect.signature(bench).parameters:
        return {"error": "not run: the reader has no GPU form yet"}
    file = root / "build" / f"gpu-reader-{shape}.json"
    file.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "btr_reader", "bench", "--shape", shape, "--device", "cuda", "--passages", "40"]
    command += ["--passage-length", "200", "--json", str(file)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "python")])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1), env=env)
    except subprocess.TimeoutExpired:
        return {"error": "not run: out of time"}
    if done.returncode != 0:
        return {"error": f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads(file.read_text(encoding="utf-8"))


def tuned(device: torch.device) -> dict[str, Any]:
    """The configurations found, to be shipped in backends/triton/tuned.json under the GPU's name."""
    from ...backends.triton import tuning

    return tuning.stored(device)


def prove(arguments: argparse.Namespace, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """Everything, within the time; the report, which is also saved after every row."""
    end = clock() + 60 * arguments.minutes

    def left() -> float:
        return end - clock()

    built = build(ROOT, 0.4 * left())
    print(f"kernels in C++ and CUDA: {built}", flush=True)
    device = current_device()
    properties = torch.cuda.get_device_properties(device)
    status = backends()
    on_gpu = [name for name in ("triton", "cuda") if status[name].available]
    checks = Checks(ROOT, int.from_bytes(os.urandom(3), "little"), left)
    if not arguments.no_checks:
        for name in on_gpu:
            print(f"checking {name}", flush=True)
            checks.results_agree(name, status[name].operators, min(8, os.cpu_count() or 1))
        print("checking streams, graphs and memory", flush=True)
        checks.launches_and_memory(on_gpu)
    torch.backends.cuda.matmul.allow_tf32 = False
    report: dict[str, Any] = {
        "format": reports.FORMAT,
        "complete": False,
        "command": "make gpu",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "versions": versions(),
        "build": built,
        "backends": {name: entry.reason or "available" for name, entry in status.items()},
        "backend": arguments.backend,
        "checks": checks.results,
        "limits": limits(device),
        "rows": [],
        "not_measured": {},
        "reader": {},
    }
    for package in OTHER_PACKAGES:
        if report["versions"][package]:
            report["not_measured"][package] = "installed, but no row for it yet"
    room = properties.total_memory // 2
    for row in all_rows():
        if arguments.rows and arguments.rows not in row.name:
            continue
        if 10 * properties.major + properties.minor < row.needs:
            report["not_measured"][row.name] = f"needs compute capability {row.needs / 10}"
        elif left() < RESERVED:
            report["not_measured"][row.name] = "out of time"
        else:
            print(f"measuring {row.name}", flush=True)
            try:
                with use_backend(arguments.backend):
                    report["rows"].append(measure(row, device, properties.L2_cache_size, room, report["limits"]))
            except AssertionError as error:
                checks.results[row.name] = {"passed": False, "detail": str(error)}
            except (RuntimeError, ValueError) as error:
                report["not_measured"][row.name] = f"{type(error).__name__}: {error}"
            torch.cuda.empty_cache()
        reports.save(report, arguments.results)
    report["reader"] = {shape: read(ROOT, shape, 0.5 * left()) for shape in ("base", "large")}
    report["tuned"] = tuned(device) if status["triton"].available else {}
    report["complete"] = not arguments.rows and not arguments.no_checks
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit; what does not fit is left out")
    parser.add_argument("--backend", default="auto", help="triton, cuda, or auto: the best of each operator")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where the file goes")
    parser.add_argument("--rows", help="measure only rows with this in their name")
    parser.add_argument("--no-checks", action="store_true", help="measure only")
    arguments = parser.parse_args(argv)
    if (reason := why_not()) is not None:
        print(f"make gpu: {reason}", file=sys.stderr)
        return 2
    report = prove(arguments)
    path = reports.save(report, arguments.results)
    print("\n".join(["", *reports.lines(report), "", f"Report: {path}"]))
    for failure in reports.failures(report["checks"]):
        print(f"\nFAILED: {failure}", file=sys.stderr)
    return 0 if reports.passed(report["checks"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
