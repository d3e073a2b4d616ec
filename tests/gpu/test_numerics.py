"""GPU kernels against the definitions of `tests/kernels`, on a GPU where there is one.

Without one, Triton's interpreter runs the Triton kernels and the emulator the CUDA kernels (nvcc is needed for its
headers), so that numerics and indexing are tested everywhere.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import btr_kernels as bk
from btr_kernels.backends import triton as triton_backend
from btr_kernels.ops.define import OPERATORS

from . import projections, workers
from .machine_code import nvcc
from .rows import CHANNELS, ROWS, operators_of

ON_GPU = torch.cuda.is_available()
IMPLEMENTATIONS = ("triton", "cuda") if ON_GPU else ("triton-interpreted", "cuda-emulated")
TESTED = [(implementation, name) for implementation in IMPLEMENTATIONS for name in operators_of(implementation)]


def why_not(implementation: str) -> str | None:
    if implementation == "cuda-emulated":
        return "nvcc, whose headers the emulator needs, is not installed" if nvcc() is None else None
    if implementation == "triton-interpreted":
        if find_spec("triton") is None:
            return "triton is not installed"
        # Its interpreter does not turn its scalars, arrays of one element, into bounds of loops.
        triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
        old = triton < (3, 7) and numpy >= (2, 4)
        return "the interpreter of triton 3.6 does not work with numpy 2.4" if old else None
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


def sizes_of(implementation: str, name: str) -> tuple:
    cases = ROWS[name].cases if implementation.startswith("cuda") else ()
    return *CHANNELS, *ROWS[name].large, *cases, "huge"


@pytest.mark.parametrize(
    ("implementation", "name", "d"), [(*pair, test) for pair in TESTED for test in sizes_of(*pair)]
)
def test_results_are_as_defined(report, implementation, name, d):
    failure = report(implementation)[name]["failures"][str(d)]
    if failure is not None and failure.startswith("skip: "):
        pytest.skip(failure[6:])
    assert failure is None, failure


@pytest.mark.parametrize(("implementation", "name"), TESTED)
def test_every_dtype_was_met(report, implementation, name):
    expected = {str(dtype) for dtype in ROWS[name].dtypes}
    if ON_GPU and torch.cuda.get_device_capability() < (8, 9):
        expected.discard(str(torch.float8_e4m3fn))
    assert expected <= set(report(implementation)[name]["dtypes"])


@pytest.mark.skipif(ON_GPU, reason="test_on_gpu.py does the same on the GPU")
@pytest.mark.skipif(why_not("triton-interpreted") is not None, reason=str(why_not("triton-interpreted")))
def test_examples_of_several_tiles_in_the_interpreter():
    """The arguments whose machine code is tested, which are larger than those above."""
    ((_, found),) = workers.run("launches", "cpu", interpret=True).items()
    assert len(found) == sum(len(ROWS[name].examples()) for name in operators_of("triton"))
    failures = [f"{call}:\n{why}" for call, why in found.items() if why]
    assert not failures, "\n".join(failures)


def test_every_kernel_has_a_row():
    with_triton = {name for name in OPERATORS if (Path(triton_backend.__file__).parent / f"{name}.py").exists()}
    with_cuda = {path.stem for path in (workers.ROOT / "csrc" / "cuda").glob("*.cu")}
    only_on_cpus = {"token_linear", "token_attention"}  # a GPU has cuBLAS and flash attention
    assert with_triton == set(ROWS) == set(OPERATORS) - only_on_cpus, "an operator without a Triton kernel or a row"
    sources = {row.cuda if isinstance(row.cuda, str) else name for name, row in ROWS.items() if row.cuda}
    assert with_cuda == sources | set(projections.SOURCES)
