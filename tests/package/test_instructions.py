"""The machine code of the CPU kernels: what each instruction set must use, also where this CPU cannot run it."""

import re
import shutil
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import btr_kernels
from btr_kernels import _C

LIBRARY = Path(btr_kernels.__file__).parent / "libbtr_core.so"
BUILT = _C.build_info()["isas"]

pytestmark = [
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is missing (Debian: apt-get install binutils)"),
    pytest.mark.skipif("avx2" not in BUILT, reason="the instructions are those of x86-64"),
]


@cache
def code():
    """Lines of machine code of each kernel, by (instruction set, function)."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--demangle", str(LIBRARY)]
    found, now = defaultdict(list), None
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if start := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            name = re.search(r"btr::(portable|avx2|avx512)::(\w+)", start[1])
            now = found[name.groups()] if name else None
        elif now is not None and "\t" in line:
            now.append(line.split("\t", 1)[1])
    return found


# What the headers of the families count on: (instruction set, function, instructions).
EXPECTED = [
    ("avx2", "pack_rows", (r"vcmpge_oqps .*%ymm", r"vpacksswb .*%ymm", r"vpmovmskb %ymm")),
    ("avx2", "unpack_signs", (r"vpsllvd .*%ymm", r"vpmullw .*%ymm", r"vmovntdq %ymm")),
    ("avx2", "expand_tokens", (r"^pdep ", r"^popcnt ")),
    ("avx2", "compress_tokens", (r"^pext ", r"^popcnt ")),
    ("avx2", "add_distances", (r"vpshufb .*%ymm", r"vpaddb .*%ymm")),
    ("avx2", "distance_matrix", (r"popcnt",)),
    ("avx2", "add_tokens", (r"vaddps .*\(.*\),%ymm", r"vpaddw .*\(.*\),%ymm")),
    ("avx2", "dot_columns", (r"vfmadd...ps .*%ymm",)),
    ("avx2", "vote", (r"vpand .*%ymm", r"vpxor .*%ymm")),
    ("avx512", "pack_rows", (r"vcmpge_oqps .*%zmm.*,%k", r"vpminsw .*%zmm", r"vpcmpeqw .*%zmm.*,%k")),
    ("avx512", "binarize_rms", (r"vfmadd...ps .*%zmm", r"vcvtps2pd .*%zmm")),
    ("avx512", "expand_tokens", (r"^pdep ", r"^popcnt ")),
    ("avx512", "compress_tokens", (r"^pext ", r"^popcnt ")),
    ("avx512", "unpack_signs", (r"vpxord .*%zmm.*\{%k|vxorps .*%zmm.*\{%k", r"vmovntdq %zmm|vmovntps %zmm")),
    ("avx512", "count_block", (r"vpopcntq .*%zmm", r"vpternlogq .*%zmm", r"vpxord .*%zmm|vpxorq .*%zmm")),
    ("avx512", "vote", (r"vpandq? .*%zmm|vpandd .*%zmm|vpternlog. .*%zmm", r"vmovdqu\w* .*%zmm")),
    ("avx512", "add_tokens", (r"vaddps .*%zmm", r"vpaddw .*%zmm")),
    ("avx512", "dot_columns", (r"vfmadd...ps .*%zmm",)),
]


@pytest.mark.parametrize(("isa", "function", "patterns"), EXPECTED, ids=lambda v: v if isinstance(v, str) else "")
def test_kernels_use_the_instructions_that_they_are_written_for(isa, function, patterns):
    if isa not in BUILT:
        pytest.skip(f"{isa} is not built")
    lines = code()[isa, function]
    assert lines, f"{isa}::{function} is not in the library"
    for pattern in patterns:
        assert any(re.search(pattern, line) for line in lines), f"{isa}::{function} has no {pattern}"


def test_no_instruction_set_uses_what_its_cpus_lack():
    beyond = {"portable": r"%[yz]mm|\tpopcnt|^popcnt|^v[a-z]", "avx2": r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])"}
    for (isa, function), lines in code().items():
        if isa in beyond:
            wrong = [line for line in lines if re.search(beyond[isa], line)]
            assert not wrong, f"{isa}::{function}: {wrong[0]}"
