"""The CUDA part of the build: what it compiles for, that it loads without a driver, what a build without nvcc says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import btr_kernels
from btr_kernels.backends import cuda, native, pinned

ROOT = Path(__file__).parents[2]
LIBRARY = Path(btr_kernels.__file__).parent / "libbtr_torch.so"


@pytest.fixture
def architectures() -> str:
    module, reason = native.load()
    if module is None:
        pytest.skip(reason)
    built = module.build_info()["cuda_architectures"]
    if not built:
        pytest.skip("built without CUDA (no nvcc of 12.5 or newer was found at build time)")
    return built


def test_machine_code_of_two_generations_and_ptx_for_later_ones(architectures):
    assert architectures.split() == ["80-real", "90a-real", "90-virtual"]


def test_the_library_needs_no_driver_and_no_toolkit(architectures):
    """The runtime is linked in and asks for the driver when a kernel is launched: a wheel imports without either."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    listing = subprocess.run(["readelf", "-d", str(LIBRARY)], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", listing)
    assert needed and not [name for name in needed if name.startswith(("libcuda.", "libcudart", "libnv"))]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_built_with_cuda_it_runs_on_a_machine_without_a_driver(architectures):
    """In a process of its own: import, registration of the CUDA kernels, and the reason why they cannot run."""
    program = (
        "import btr_kernels, torch\n"
        "bits = btr_kernels.pack_bits(torch.randn(2, 9, 40))\n"
        "assert btr_kernels.match_tokens(bits, 5).slot.shape == (2, 9)\n"
        "assert torch._C._dispatch_has_kernel_for_dispatch_key('btr_native::match_tokens', 'CUDA')\n"
        "print(btr_kernels.backends()['cuda'].reason)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch finds no CUDA device"


def test_a_build_without_nvcc_leaves_the_kernels_out_and_says_so(tmp_path):
    """Only what CMake finds out before it compiles, told that there is no CUDA compiler."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=os.path.dirname(sys.executable))
    pybind11 = pytest.importorskip("pybind11")
    if cmake is None or shutil.which("make") is None:
        pytest.skip("cmake and make are not installed")
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path), "-G", "Unix Makefiles"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    command += [f"-DBTR_TORCH_DIR={Path(torch.__file__).parent}", "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND"]
    left_out = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert left_out.returncode == 0, left_out.stderr
    assert "No CUDA compiler of 12.5 or newer was found" in left_out.stdout
    wanted = subprocess.run([*command, "-DBTR_CUDA=on"], capture_output=True, text=True, timeout=300)
    assert wanted.returncode != 0 and "BTR_CUDA=on, but no CUDA compiler of 12.5" in wanted.stderr
    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    old.chmod(0o755)
    command[-1:] = [f"-DCMAKE_CUDA_COMPILER={old}", "-DBTR_CUDA=auto"]
    left_out = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert left_out.returncode == 0, left_out.stderr
    assert "12.5 or newer was found" in left_out.stdout and "nvcc 12.4)" in left_out.stdout


def test_gpus_and_drivers_that_cannot_run_them_are_named(monkeypatch):
    module = SimpleNamespace(build_info=lambda: {"cuda_architectures": "80-real", "cuda_toolkit": "13.0"})
    monkeypatch.setattr(cuda.native, "load", lambda: (module, None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert cuda.why_not() == "needs a GPU of compute capability 8.0, this one has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for driver, reason in ((12040, "built by CUDA 13.0, but the driver is one for CUDA 12"), (13000, None)):
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda driver=driver: driver, raising=False)
        assert cuda.why_not() == reason


def test_pinned_memory_is_read_in_place_only_where_it_is_contiguous():
    """A contiguous copy of it would be ordinary memory, which a GPU cannot read."""

    class Pinned(torch.Tensor):
        def is_pinned(self):
            return True

        def to(self, device):
            return torch.Tensor.contiguous(self).as_subclass(torch.Tensor)

    bits = torch.arange(12, dtype=torch.uint8).reshape(3, 4).as_subclass(Pinned)
    gpu = torch.device("cuda", 0)
    assert pinned.readable(bits, gpu) is bits
    copied = pinned.readable(bits[:, :3], gpu)
    assert type(copied) is torch.Tensor and copied.tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
