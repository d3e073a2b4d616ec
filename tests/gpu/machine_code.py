"""Compiling and disassembling: the tools, and what the machine code of a kernel is made of."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

#: Local memory is where registers spill to: no kernel of ours may touch it.
LOCAL_MEMORY = r"\b(LDL|STL)\b"


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def disassembler(name: str) -> str | None:
    """`cuobjdump` or `nvdisasm`: on the PATH, beside nvcc, or in the package triton."""
    places = [os.environ.get("PATH", "")]
    if compiler := nvcc():
        places.append(str(Path(compiler).resolve().parent))
    if spec := find_spec("triton"):
        places.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which(name, path=os.pathsep.join(places))


def instructions(sass: str) -> list[str]:
    """Opcodes with their modifiers and operands, such as LDG.E.128.CONSTANT R4, [R2.64], in the listing's order."""
    return re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*?)\s*;", sass, re.MULTILINE)


def kernels(binary: Path) -> dict[str, list[str]]:
    """The instructions of every kernel in a cubin, by mangled name."""
    nvdisasm = disassembler("nvdisasm")
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(nvdisasm).parent), os.environ.get("PATH", "")])}
    command = [disassembler("cuobjdump"), "-sass", str(binary)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    _, *rest = re.split(r"Function : (\S+)", listing)
    return {name: instructions(body) for name, body in zip(rest[::2], rest[1::2], strict=True)}
