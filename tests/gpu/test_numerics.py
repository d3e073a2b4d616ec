"""GPU kernels against the definitions of `tests/kernels`, on a GPU where there is one.

Without one, Triton's interpreter runs the Triton kernels and the emulator the CUDA kernels (nvcc is needed for its
headers), so that numerics and indexing are tested everywhere.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import btr_kernels as bk
from btr_kernels.backends import triton as triton_backend

from . import workers
from .machine_code import nvcc
from .rows import CHANNELS, LARGE, ROWS

ON_GPU = torch.cuda.is_available()
IMPLEMENTATIONS = ("triton", "cuda") if ON_GPU else ("triton-interpreted", "cuda-emulated")


def why_not(implementation: str) -> str | None:
    if implementation == "cuda-emulated":
        return "nvcc, whose headers the emulator needs, is not installed" if nvcc() is None else None
    if implementation == "triton-interpreted":
        return "triton is not installed" if find_spec("triton") is None else None
    return bk.backends()[implementation].reason or None


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """implementation -> what its worker reports. Each worker runs once; one that fails, fails all its tests."""

    @cache
    def outcome(implementation: str) -> dict | Exception:
        try:
            if implementation == "cuda-emulated":
                sources = sorted((workers.ROOT / "csrc" / "cuda").glob("*.cu"))
                library = tmp_path_factory.mktemp("emulated") / "libcuda_kernels.so"
                workers.run("build_emulator", str(library), *map(str, sources))
                return workers.run("check_kernels", "emulated", str(library))
            if implementation == "triton-interpreted":
                return workers.run("check_kernels", "triton", "cpu", interpret=True)
            return workers.run("check_kernels", implementation, "cuda")
        except Exception as error:
            return error

    def of(implementation: str) -> dict:
        if reason := why_not(implementation):
            pytest.skip(reason)
        result = outcome(implementation)
        if isinstance(result, Exception):
            raise result
        return result

    return of


@pytest.mark.parametrize("d", [*CHANNELS, *LARGE, "huge"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_results_are_as_defined(report, implementation, name, d):
    failure = report(implementation)[name]["failures"][str(d)]
    if failure is not None and failure.startswith("skip: "):
        pytest.skip(failure[6:])
    assert failure is None, failure


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_dtype_was_met(report, implementation, name):
    assert {str(dtype) for dtype in ROWS[name].dtypes} <= set(report(implementation)[name]["dtypes"])


def test_every_kernel_has_a_row():
    operators = {name for name in torch.ops.btr.__dir__() if not name.startswith("_")}
    written = {path.stem for path in Path(triton_backend.__file__).parent.glob("*.py")} - {"__init__", "common"}
    written |= {path.stem for path in (workers.ROOT / "csrc" / "cuda").glob("*.cu")}
    assert written <= set(ROWS), "a kernel without a row in rows.py is not tested"
    assert set(ROWS) <= operators | written
