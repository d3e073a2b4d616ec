"""What was built, what runs here and why something does not: `python -m btr_kernels.env [--json]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from .backends import backends, current_backend, native
from .version import __version__

_PACKAGES = ("torch", "numpy", "triton", "transformers", "faiss-cpu", "safetensors", "tokenizers")
_VARIABLES = ("BTR_BACKEND", "BTR_ISA", "BTR_DEBUG", "TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


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
    """Everything the command prints, as a JSON-ready dict."""
    module, reason = native.load()
    report = {
        "btr_kernels": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "threads": torch.get_num_threads(), "logical_cores": os.cpu_count()},
        "packages": {name: _package_version(name) for name in _PACKAGES},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "native": {"loaded": module is not None, "reason": reason},
        "backend": current_backend(),
        "backends": {
            name: {"available": status.available, "reason": status.reason, "operators": list(status.operators)}
            for name, status in backends().items()
        },
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    if module is not None:
        report["native"] |= {
            "build": module.build_info(),
            "instruction_sets": module.isas(),
            "instruction_set": module.isa(),
        }
    return report


def render(report: dict) -> str:
    """The report as readable lines."""
    lines = [
        f"btr_kernels {report['btr_kernels']}, Python {report['python']}, {report['platform']}",
        f"CPU: {report['cpu']['model']}, {report['cpu']['threads']} torch threads "
        f"of {report['cpu']['logical_cores']} logical cores",
    ]
    native_part = report["native"]
    if native_part["loaded"]:
        build = native_part["build"]
        cuda = build["cuda_architectures"] or "none (no nvcc at build time)"
        lines += [
            f"Compiled with {build['compiler']} against torch {build['torch']}; CUDA architectures: {cuda}",
            f"Instruction sets: built {', '.join(build['isas'])}; this CPU runs "
            f"{', '.join(native_part['instruction_sets'])}; in use: {native_part['instruction_set']} (BTR_ISA forces)",
        ]
    else:
        lines.append(f"Compiled part: not loaded: {native_part['reason']}")
    lines.append(f"GPUs: {', '.join(report['gpus']) or 'none that torch can use'}")
    lines.append(f"Backend in use: {report['backend']} (use_backend or BTR_BACKEND chooses)")
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
    try:
        report = collect()
    except (ValueError, RuntimeError) as error:  # BTR_ISA or BTR_BACKEND asks for what cannot be had
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2) if arguments.json else render(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
