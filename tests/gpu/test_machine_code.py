"""What the kernels compile to, for GPUs that need not be there: 16-byte accesses on the fast paths, no spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec

import pytest

from . import workers
from .machine_code import LOCAL_MEMORY, disassembler, instructions, kernels, nvcc
from .rows import ROWS

CSRC = workers.ROOT / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
TRITON_ARCHITECTURES = ("80", "90")

needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")
needs_disassembler = pytest.mark.skipif(
    not (disassembler("cuobjdump") and disassembler("nvdisasm")),
    reason="cuobjdump and nvdisasm are neither on the PATH nor beside nvcc nor in the package triton",
)


def assert_fast(name: str, kernel: str, opcodes: list[str]) -> None:
    listing = "\n".join(opcodes)
    for pattern in ROWS[name].instructions:
        assert re.search(pattern, listing), f"{kernel} has no {pattern}: {sorted(set(opcodes))}"


def assert_no_local_memory(kernel: str, opcodes: list[str]) -> None:
    assert opcodes, f"{kernel}: nothing was disassembled"
    used = [opcode for opcode in opcodes if re.match(LOCAL_MEMORY, opcode)]
    assert not used, f"{kernel} spills registers or indexes local arrays: {used}"


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_cuda(source, architecture, tmp_path):
    cubin = tmp_path / "kernels.cubin"
    # The flags of CMakeLists.txt: a spill is an error.
    command = [nvcc(), "-std=c++17", "-O3", "-cubin", f"-arch={architecture}", "-I", str(CSRC)]
    command += ["-Xptxas", "--warn-on-spills,--warning-as-error", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr

    if not (disassembler("cuobjdump") and disassembler("nvdisasm")):
        pytest.skip("compiled, but there is no disassembler to look at the result")
    found = kernels(cubin)
    for kernel, opcodes in found.items():
        assert_no_local_memory(kernel, opcodes)
    fast = {kernel: opcodes for kernel, opcodes in found.items() if ROWS[source.stem].cuda in kernel}
    assert fast, f"no kernel {ROWS[source.stem].cuda} among {list(found)}"
    for kernel, opcodes in fast.items():
        assert_fast(source.stem, kernel, opcodes)


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
    launches = report[name][architecture]
    assert len(launches) >= len(ROWS[name].examples())
    for i, opcodes in enumerate(launches):
        assert_no_local_memory(f"launch {i}", opcodes)
        assert_fast(name, f"launch {i}", opcodes)


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
    """
    opcodes = instructions(listing)
    assert opcodes == ["ISETP.GE.AND", "EXIT", "LDG.E.64.CONSTANT", "STL"]
    with pytest.raises(AssertionError, match="spills"):
        assert_no_local_memory("k", opcodes)
    with pytest.raises(AssertionError, match="has no"):
        assert_fast("pack_bits", "k", opcodes)
