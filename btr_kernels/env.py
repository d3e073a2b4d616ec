"""What was built, what runs here and why something does not: `python -m btr_kernels.env [--json]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from .backends import NAMES, backend_status, current_backend, native
from .version import __version__

_PACKAGES = ("torch", "numpy", "triton", "transformers", "faiss-cpu", "safetensors", "tokenizers")
_VARIABLES = (
    "BTR_BACKEND",
    "BTR_ISA",
    "BTR_TUNING",
    "BTR_DEBUG",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.lower().startswith(("model name", "cpu part")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def collect() -> dict:
    """Everything the command prints, as a JSON-ready dict.

    What an environment variable makes impossible is left out, and `problems` says why.
    """
    problems = []

    def ask(question: Callable, *arguments) -> tuple:
        """The answer and "", or None and why there is none."""
        try:
            return question(*arguments), ""
        except (ValueError, RuntimeError) as error:
            if str(error) not in problems:
                problems.append(str(error))
            return None, str(error)

    loaded, why = ask(native.load)
    module, reason = loaded or (None, why)
    statuses = {name: ask(backend_status, name) for name in NAMES}
    report = {
        "btr_kernels": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "threads": torch.get_num_threads(), "logical_cores": os.cpu_count()},
        "packages": {name: _package_version(name) for name in _PACKAGES},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "native": {"loaded": module is not None, "reason": reason},
        "backend": ask(current_backend)[0],
        "backends": {
            name: {
                "available": status is not None and status.available,
                "reason": why or status.reason,
                "operators": list(status.operators) if status else [],
            }
            for name, (status, why) in statuses.items()
        },
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "problems": problems,
    }
    if module is not None:
        report["native"] |= {"instruction_set": module.isa(), "thresholds": module.tuning()}
    # Asked apart, since it is where instruction sets are looked up after BTR_ISA named none that runs.
    with suppress(ImportError):
        from . import _C

        report["native"] |= {"build": _C.build_info(), "instruction_sets": _C.isa_lacks()}
    return report


def render(report: dict) -> str:
    """The report as readable lines."""
    lines = [
        f"btr_kernels {report['btr_kernels']}, Python {report['python']}, {report['platform']}",
        f"CPU: {report['cpu']['model']}, {report['cpu']['threads']} torch threads "
        f"of {report['cpu']['logical_cores']} logical cores",
    ]
    native_part = report["native"]
    if not native_part["loaded"]:
        lines.append(f"Compiled part: not loaded: {native_part['reason']}")
    if "build" in native_part:
        build = native_part["build"]
        cuda = build["cuda_architectures"] or "none (no nvcc at build time)"
        lines.append(f"Compiled with {build['compiler']} against torch {build['torch']}; CUDA architectures: {cuda}")
        lines.append("Instruction sets (the last that runs is used; BTR_ISA forces one):")
        for name, lacks in native_part["instruction_sets"].items():
            state = "in use" if name == native_part.get("instruction_set") else "runs"
            lines.append(f"  {name:<10}{f'cannot run: this machine lacks {lacks}' if lacks else state}")
    if "thresholds" in native_part:
        lines.append("Thresholds (BTR_TUNING=name=value,... overrides):")
        for name, row in native_part["thresholds"].items():
            changed = "" if row["value"] == row["default"] else f" (default {row['default']})"
            lines.append(f"  {name} = {row['value']}{changed}: {row['selects']}")
    lines.append(f"GPUs: {', '.join(report['gpus']) or 'none that torch can use'}")
    lines.append(f"Backend in use: {report['backend'] or 'none'} (use_backend or BTR_BACKEND chooses)")
    for name, status in report["backends"].items():
        state = f"runs: {', '.join(status['operators'])}" if status["available"] else f"cannot run: {status['reason']}"
        lines.append(f"  {name:<10}{state}")
    versions = (f"{name} {number or '-'}" for name, number in report["packages"].items())
    lines.append(f"Packages: {', '.join(versions)}")
    lines += [f"{name}={value}" for name, value in report["environment"].items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m btr_kernels.env", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    arguments = parser.parse_args()
    report = collect()
    print(json.dumps(report, indent=2) if arguments.json else render(report), flush=True)
    for problem in report["problems"]:
        print(problem, file=sys.stderr)
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
