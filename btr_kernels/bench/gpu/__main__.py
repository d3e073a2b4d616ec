"""Proves the kernels on this machine's GPU and measures them, offline, with the torch and Triton that are there.

    make gpu                                  # from the checkout; benchmarks/results/<gpu>/<date>.json and a table
    python -m btr_kernels.bench.gpu --help

Builds what can be built, checks every operator on every GPU backend, streams and graphs, measures every row of `rows`
against its peers and the machine's limits, and those of `packages` against theirs, and runs `btr bench`. Each part has
its share of the time (`schedule`); what there is no time for is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ... import backends, use_backend
from ...backends import backend_status
from . import packages
from . import report as reports
from .checks import Checks
from .measure import measure
from .rows import Row, all_rows
from .schedule import Schedule
from .timing import limits

ROOT = Path(__file__).parents[3]
#: Seconds that a row takes with what it compiles: none is begun with less.
ROW_NEEDS = 10.0
#: What `btr bench` reads on the GPU: the sizes of the targets, in the dtype that GPUs multiply fast.
READER = ("--passages", "40", "--passage-length", "200", "--dtype", "bfloat16", "--readers", "atlas", "deformer", "btr")


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
    # A session of its own, so that the compilers end with it and do not disturb what is measured.
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "not built: out of time; build before, by python setup.py build_ext --inplace"
    if process.returncode == 0:
        return "built"
    return "not built: " + (said.strip().splitlines() or ["no message"])[-1]


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    others = (packages.DISTRIBUTIONS.get(module, module) for module in packages.PACKAGES)
    for package in ("triton", "btr-kernels", *others):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def read(root: Path, shape: str, seconds: float) -> dict[str, Any]:
    """`btr bench` on the GPU."""
    file = root / "build" / f"gpu-reader-{shape}.json"
    file.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "btr_reader", "bench", "--shape", shape, "--device", "cuda", *READER]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "python")])}
    try:
        done = subprocess.run(
            [*command, "--json", str(file)], capture_output=True, text=True, timeout=max(seconds, 1), env=env
        )
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
    schedule = Schedule(arguments.minutes, clock)
    with schedule.part("build"):
        built = build(ROOT, schedule.left())
    print(f"kernels in C++ and CUDA: {built}", flush=True)
    device = current_device()
    properties = torch.cuda.get_device_properties(device)
    status = backends()
    on_gpu = [name for name in ("triton", "cuda") if status[name].available]
    checks = Checks(ROOT, int.from_bytes(os.urandom(3), "little"), schedule.left)
    with schedule.part("checks"):
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
        "time": schedule.parts,
    }
    with schedule.part("rows"):
        for row in all_rows():
            if not arguments.rows or arguments.rows in row.name:
                _measure_into(report, row, device, schedule)
                reports.save(report, arguments.results)
    if not arguments.rows:
        with schedule.part("packages"):
            for i, package in enumerate(packages.PACKAGES):
                share = schedule.left() / (len(packages.PACKAGES) - i)
                found, why_not = packages.run(package, report["limits"], arguments.backend, share)
                report["rows"] += found
                if why_not:
                    report["not_measured"][package] = why_not
        with schedule.part("reader"):
            # The large shape takes about three times as long.
            report["reader"]["base"] = read(ROOT, "base", 0.3 * schedule.left())
            report["reader"]["large"] = read(ROOT, "large", schedule.left())
    report["tuned"] = tuned(device) if status["triton"].available else {}
    report["complete"] = not arguments.rows and not arguments.no_checks
    return report


def _backends_of(row: Row) -> list[str]:
    """The GPU backends that have all operators of a row, if there are several to choose from."""
    found = [name for name in ("triton", "cuda") if set(row.operators) <= set(backend_status(name).operators)]
    return found if row.operators and len(found) > 1 else []


def _measure_into(report: dict[str, Any], row: Row, device: torch.device, schedule: Schedule) -> None:
    if 10 * float(report["capability"]) < row.needs:
        report["not_measured"][row.name] = f"needs compute capability {row.needs / 10}"
    elif schedule.left() < ROW_NEEDS:
        report["not_measured"][row.name] = "out of time"
    else:
        print(f"measuring {row.name}", flush=True)
        try:
            with use_backend(report["backend"]):
                report["rows"].append(measure(row, device, report["limits"], _backends_of(row)))
        except AssertionError as error:
            report["checks"][row.name] = {"passed": False, "detail": str(error)}
        except (RuntimeError, ValueError) as error:
            report["not_measured"][row.name] = f"{type(error).__name__}: {error}"
        torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit; what does not fit is left out")
    parser.add_argument("--backend", default="auto", help="triton, cuda, or auto: the best of each operator")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where the file goes")
    parser.add_argument("--rows", help="measure rows with this in their name, and nothing else")
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
