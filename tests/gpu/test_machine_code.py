"""What the kernels compile to, for GPUs that need not be there: 16-byte accesses on the fast paths, tensor cores that
take the bits from registers, no spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import pytest

from . import projections, workers
from .machine_code import LOCAL_MEMORY, disassembler, instructions, kernels, nvcc
from .resources import KERNELS, architectures_of, compile_cuda, uses
from .rows import FLOAT_TILES, LOADS_128, ROWS, Pattern

CSRC = workers.ROOT / "csrc"
TRITON_ARCHITECTURES = ("80", "90")

needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")
needs_disassembler = pytest.mark.skipif(
    not (disassembler("cuobjdump") and disassembler("nvdisasm")),
    reason="cuobjdump and nvdisasm are neither on the PATH nor beside nvcc nor in the package triton",
)


def assert_fast(kernel: str, patterns: Sequence[Pattern], architecture: str, found: list[str]) -> None:
    listing = "\n".join(found)
    for pattern in patterns:
        pattern = pattern if isinstance(pattern, str) else pattern[architecture]
        opcodes = sorted({instruction.split()[0] for instruction in found})
        assert re.search(pattern, listing, re.MULTILINE), f"{kernel} has no {pattern}: {opcodes}"


def assert_expands_in_registers(kernel: str, found: list[str]) -> None:
    """Expanded bits that went through shared memory would be stored there before the last multiplication."""
    last = max(i for i, instruction in enumerate(found) if re.match(r"\w*MMA\.\d", instruction))
    stored = [instruction for instruction in found[:last] if re.match(r"STS|STSM", instruction)]
    assert not stored, f"{kernel} stores operands to shared memory: {stored}"


def assert_no_local_memory(kernel: str, found: list[str]) -> None:
    assert found, f"{kernel}: nothing was disassembled"
    used = [instruction for instruction in found if re.match(LOCAL_MEMORY, instruction)]
    assert not used, f"{kernel} spills registers or indexes local arrays: {used}"


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "architecture"), [(name, architecture) for name in KERNELS for architecture in architectures_of(name)]
)
def test_cuda(name, architecture, tmp_path):
    cubin = tmp_path / "kernels.cubin"
    compile_cuda(CSRC / "cuda" / f"{name}.cu", architecture, cubin)

    if not (disassembler("cuobjdump") and disassembler("nvdisasm")):
        pytest.skip("compiled, but there is no disassembler to look at the result")
    found = kernels(cubin)
    for kernel, listing in found.items():
        assert_no_local_memory(kernel, listing)
    for use in uses(cubin, name, architecture):
        least = next(kernel.warps for part, kernel in KERNELS[name].items() if part in use.kernel)
        assert use.warps >= least, f"{use.warps} warps of a multiprocessor, expected {least}: {use}"
    wanted, patterns, *_ = projections.SOURCES.get(name) or ROWS[name].cuda
    fast = {kernel: listing for kernel, listing in found.items() if re.search(wanted, kernel)}
    assert fast, f"no kernel {wanted} among {list(found)}"
    for kernel, listing in fast.items():
        assert_fast(kernel, patterns, architecture.removeprefix("sm_").removesuffix("a"), listing)
        if name.startswith("project_"):
            assert_expands_in_registers(kernel, listing)


@cache
def _compiled_triton() -> dict | Exception:
    try:
        return workers.run("compile_triton", *TRITON_ARCHITECTURES)
    except Exception as error:
        return error


@needs_disassembler
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("architecture", TRITON_ARCHITECTURES)
@pytest.mark.parametrize("name", ROWS)
def test_triton(name, architecture):
    report = _compiled_triton()
    if isinstance(report, Exception):
        raise report
    for example, launches in zip(ROWS[name].examples(), report[name][architecture], strict=True):
        if int(architecture) < example.capability:
            continue
        assert {kernel for kernel, _ in launches} == set(example.fast)
        for kernel, found in launches:
            assert_no_local_memory(kernel, found)
            assert_fast(kernel, example.fast[kernel], architecture, found)
            if kernel in example.in_registers:
                assert_expands_in_registers(kernel, found)


@needs_disassembler
@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("architecture", TRITON_ARCHITECTURES)
def test_no_configuration_spills(architecture):
    report = workers.run("compile_triton", architecture, "--every-configuration", seconds=1800)
    spilled = [
        f"{name}, example {example}, launch {i} ({kernel})"
        for name, found in report.items()
        for example, launches in enumerate(found[architecture])
        for i, (kernel, listing) in enumerate(launches)
        if any(re.match(LOCAL_MEMORY, instruction) for instruction in listing)
    ]
    assert not spilled


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_launchers_header_needs_no_cuda(tmp_path):
    source = tmp_path / "user.cpp"
    source.write_text('#include "cuda/launchers.h"\n')
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", str(CSRC), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_checks_can_fail():
    listing = """
        /*0070*/                   ISETP.GE.AND P0, PT, R0, R3, PT ;   /* 0x000000030000720c */
        /*0080*/               @P0 EXIT ;                              /* 0x000000000000094d */
        /*0090*/              @!P1 LDG.E.64.CONSTANT R4, [R2.64] ;     /* 0x0000000402047981 */
        /*00a0*/                   STL [R1], R4 ;                      /* 0x0000000401007387 */
        /*00b0*/                   STS [R1], R4 ;                      /* 0x0000000401007388 */
        /*00c0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
    """
    found = instructions(listing)
    assert found == [
        "ISETP.GE.AND P0, PT, R0, R3, PT",
        "EXIT",
        "LDG.E.64.CONSTANT R4, [R2.64]",
        "STL [R1], R4",
        "STS [R1], R4",
        "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24",
    ]
    with pytest.raises(AssertionError, match="spills"):
        assert_no_local_memory("k", found)
    with pytest.raises(AssertionError, match="has no"):
        assert_fast("k", (LOADS_128,), "90", found)
    with pytest.raises(AssertionError, match="has no"):
        assert_fast("k", (FLOAT_TILES,), "90", found)
    with pytest.raises(AssertionError, match="to shared memory"):
        assert_expands_in_registers("k", found)
