"""What every CUDA kernel takes of a multiprocessor: registers, shared memory, and the warps that then fit.

`python -m gpu.resources` prints the table in Markdown. `KERNELS` is what the tests hold the kernels to: not registers,
which change with the compiler, but how many warps a multiprocessor holds at least, and so how much latency they hide.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import projections
from .machine_code import disassembler, nvcc
from .projections import Kernel
from .workers import ROOT

CSRC = ROOT / "csrc"
ARCHITECTURES = ("sm_80", "sm_90a")

#: Of a multiprocessor: registers, bytes of shared memory that blocks share (each takes _RESERVED more), warps, blocks.
_REGISTERS, _WARPS, _BLOCKS, _RESERVED = 65536, 64, 32, 1024
_SHARED = {"sm_80": 164 << 10, "sm_90a": 228 << 10}
#: Registers are given to warps in units of this.
_UNIT = 256


def _kernel(shared: int, warps: int) -> Kernel:
    return Kernel(shared, warps, 256)


_TILE = 2 * 64 * 160 + 2 * 64 * 4  # TileMemory
#: By source and by the kernel's name.
KERNELS = {
    "pack_bits": {"pack_sequence": _kernel(0, 32), "pack_rows": _kernel(0, 32)},
    "unpack_bits": {"unpack_vectors": _kernel(0, 32), "unpack_rows": _kernel(0, 32)},
    "restore_bits": {"restore_vectors": _kernel(8 * 512, 32), "restore_rows": _kernel(0, 32)},
    "binarize": {"binarize_rows": _kernel(0, 16)},
    "expand_bits": {"expand_words": _kernel(0, 32)},
    "hamming_distance": {"hamming_tiles": _kernel(_TILE, 24)},
    "hamming_topk": {"select_nearest": _kernel(8232, 32)},
    "match_tokens": {"match_passages": _kernel(_TILE + 2 * 2 * 64 * 4 + 8 * 2 * 4 + 4, 16)},
    "merge_bits": {"merge_rows": _kernel(4 * 64 * 4, 24)},
    "merge_tokens": {"merge_means": _kernel(0, 32)},
    **{name: source.kernels for name, source in projections.SOURCES.items()},
}


def architectures_of(name: str) -> tuple[str, ...]:
    """Those that the kernels of a source are tested on."""
    return projections.SOURCES[name].architectures if name in projections.SOURCES else ARCHITECTURES


class Use(NamedTuple):
    kernel: str
    registers: int
    shared: int
    warps: int


def warps_that_fit(registers: int, kernel: Kernel, static_shared: int, architecture: str) -> int:
    """Resident warps of a multiprocessor, by what NVIDIA documents of its limits."""
    warps = kernel.threads // 32
    each = -(-registers * 32 // _UNIT) * _UNIT
    by_registers = _REGISTERS // each // warps
    # What is compiled for Hopper counts the reserved bytes as its own.
    by_shared = _SHARED[architecture] // (kernel.shared + max(static_shared, _RESERVED))
    return warps * min(by_registers, by_shared, _WARPS // warps, _BLOCKS)


def compile_cuda(source: Path, architecture: str, cubin: Path) -> None:
    """With the flags of CMakeLists.txt: a spilled register is an error."""
    command = [nvcc(), "-std=c++17", "-O3", "-cubin", f"-arch={architecture}", "-I", str(CSRC)]
    command += ["-Xptxas", "--warn-on-spills,--warning-as-error", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # That multiplications wait for each other ("serialized") is no warning.
    assert "warning" not in done.stderr and "serialized" not in done.stderr, done.stderr


def uses(cubin: Path, name: str, architecture: str) -> Iterator[Use]:
    """What each kernel of a compiled source takes; an AssertionError for one that `KERNELS` does not know."""
    command = [disassembler("cuobjdump"), "-res-usage", str(cubin)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:\d+ SHARED:(\d+)", done.stdout + done.stderr)
    assert found, done.stdout + done.stderr
    for mangled, registers, static_shared in found:
        (known,) = (kernel for part, kernel in KERNELS[name].items() if part in mangled)
        warps = warps_that_fit(int(registers), known, int(static_shared), architecture)
        yield Use(mangled, int(registers), known.shared, warps)


def _range(values: list[int]) -> str:
    least, most = min(values), max(values)
    return f"{least}" if least == most else f"{least}-{most}"


def main() -> None:
    print("| source | kernel | architecture | registers | shared memory | warps of 64 |")
    print("| --- | --- | --- | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or KERNELS:
            for architecture in architectures_of(name):
                cubin = Path(folder) / "kernels.cubin"
                compile_cuda(CSRC / "cuda" / f"{name}.cu", architecture, cubin)
                found = list(uses(cubin, name, architecture))
                for part in KERNELS[name]:
                    of_part = [use for use in found if part in use.kernel]
                    cells = [_range([use[i] for use in of_part]) for i in (1, 2, 3)]
                    print(f"| `{name}` | `{part}` | {architecture} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
