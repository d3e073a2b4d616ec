"""Builds the compiled parts with CMake; everything else about the package is in pyproject.toml.

Environment: BTR_CUDA=auto|on|off (default auto: CUDA kernels if nvcc is found), MAX_JOBS (compiler processes).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MINIMUM_TORCH = (2, 11)
_FIND_TORCH = (
    "import importlib.util as u, importlib.metadata as m, pathlib;"
    "s = u.find_spec('torch'); s and print(pathlib.Path(s.origin).parent, m.version('torch'), sep='\\n')"
)


def find_torch() -> tuple[str, str]:
    """Directory and version of the torch that is installed for this Python.

    torch is no build requirement: pip's isolated build would fetch the newest one, gigabytes, to build against. The
    installed one is out of sight there, but not of an interpreter that starts without pip's environment variables.
    """
    for options in ([], ["-I"]):
        found = subprocess.run([sys.executable, *options, "-c", _FIND_TORCH], capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip():
            directory, version = found.stdout.strip().split("\n")
            if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_TORCH:
                raise SystemExit(f"btr-kernels needs torch >= {MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]}, found {version}")
            return directory, version
    raise SystemExit("btr-kernels builds against the installed torch, and none is: run `pip install torch` first")


def tool(name: str) -> str | None:
    """A program beside this interpreter (as pip installs cmake and ninja) or on the PATH."""
    return shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))


class CMakeBuild(build_ext):
    """Configures, builds and installs all CMake targets into the package's directory."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        torch_directory, torch_version = find_torch()
        # Beside the sources, so that a second install compiles only what changed.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        package = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        if self.editable_mode:
            # setuptools copies the module itself out of its build directory, but not the libraries beside it.
            package = ROOT / "btr_kernels"
        cmake, ninja = tool("cmake"), tool("ninja")
        if cmake is None:
            raise SystemExit("btr-kernels builds with CMake >= 3.24: run `pip install cmake ninja` first")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build),
            f"-DCMAKE_INSTALL_PREFIX={package}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DBTR_TORCH_DIR={torch_directory}",
            f"-DBTR_TORCH_VERSION={torch_version}",
            f"-DBTR_CUDA={os.environ.get('BTR_CUDA', 'auto')}",
        ]  # fmt: skip
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        # pip's isolated environment comes and goes: a build directory made with another one starts afresh.
        if subprocess.run(configure).returncode != 0:
            shutil.rmtree(build, ignore_errors=True)
            subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        subprocess.run([cmake, "--install", str(build)], check=True)
        if self.editable_mode:
            Path(self.get_ext_fullpath(ext.name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(package / Path(self.get_ext_filename(ext.name)).name, self.get_ext_fullpath(ext.name))


setup(ext_modules=[Extension("btr_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
