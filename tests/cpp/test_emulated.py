"""Kernels of instruction sets that this machine lacks: built with the C++ test program and run in an emulation.

AVX-512 through SIMDe (Debian: libsimde-dev), NEON with a cross compiler under qemu (g++-aarch64-linux-gnu,
qemu-user-static). Where the CPU has the instruction set, all tests of the kernels also run it directly.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARM_COMPILER = "aarch64-linux-gnu-g++"
ARM_EMULATOR = "qemu-aarch64-static"
on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="emulates on x86-64")


def tool(name):
    """A program beside this interpreter (as pip installs cmake and ninja) or on the PATH."""
    return shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)


def needs(found, what, package):
    return pytest.mark.skipif(not found, reason=f"{what} is missing (Debian: apt-get install {package})")


def built(directory, *options):
    """The path of the test program; what it was built with stays for the next run."""
    if not (cmake := tool("cmake")):
        pytest.skip("cmake is missing")
    build = ROOT / "build" / directory
    command = [cmake, "-S", ROOT, "-B", build, "-DBTR_CHECK=ON", "-DCMAKE_BUILD_TYPE=Release", *options]
    if ninja := tool("ninja"):
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for step in (command, [cmake, "--build", build, "--parallel", str(os.cpu_count() or 1)]):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build / "btr_check"


def passes(command, isa):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert any(line.startswith(f"{isa}: ") for line in done.stdout.splitlines()), done.stdout


@on_x86
@needs(Path("/usr/include/simde/x86/avx512.h").exists(), "SIMDe", "libsimde-dev")
def test_avx512_kernels_through_simde():
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU lacks AVX2, which the emulation uses")
    passes([built("emulated-avx512", "-DBTR_EMULATE_AVX512=ON")], "avx512")


@needs(shutil.which(ARM_COMPILER), ARM_COMPILER, "g++-aarch64-linux-gnu")
@needs(shutil.which(ARM_EMULATOR), ARM_EMULATOR, "qemu-user-static")
def test_neon_kernels_under_qemu():
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}"]
    passes([ARM_EMULATOR, "-L", "/usr/aarch64-linux-gnu", built("emulated-neon", *options)], "neon")
