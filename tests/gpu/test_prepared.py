"""How `prepare_weight` stores weights on a GPU: the same functions on CPU tensors in a GPU's order."""

from __future__ import annotations

import pytest
import torch

import btr_kernels as bk
from btr_kernels import matmul, reference

#: Relative Frobenius errors that are promised for Gaussian weights.
FORMS = [("fast", matmul._half, 1e-3), ("int8", matmul._int8, 1.2e-2), ("fp8", matmul._fp8, 4e-2)]


@pytest.mark.parametrize(("precision", "prepare", "promised"), FORMS, ids=[form[0] for form in FORMS])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_errors_and_order(precision, prepare, promised, size):
    weight = torch.randn(96, 768, generator=torch.Generator().manual_seed(1)) * size
    weight[5] = 0.0
    data, factors = prepare(weight.clone().t())
    assert data.shape == (768, 96) and data.stride() == (1, 768), "the channels of an output are next to each other"
    assert factors.shape == (1, 96) and factors.dtype == torch.float32
    bits = torch.randint(0, 256, (200, 96), dtype=torch.uint8)
    exact = reference.signs(bits, 768, torch.float64) @ weight.double().t()
    prepared = bk.PreparedWeight(data, factors, precision, torch.float32)
    for backend in ("reference", "auto"):
        with bk.use_backend(backend):
            got = bk.unpack_matmul(bits, prepared).double()
        assert float((got - exact).norm() / exact.norm()) <= promised
        assert bool((got[:, 5] == 0).all())


def test_float8_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="precision: 'fp8' needs a GPU backend that has it"):
        bk.prepare_weight(torch.randn(4, 8), precision="fp8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("precision", ["exact", "fast", "int8", "fp8"])
def test_prepared_on_a_gpu(precision):
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    weight = torch.randn(64, 768, device="cuda")
    prepared = bk.prepare_weight(weight, torch.rand(768, device="cuda"), precision)
    assert prepared.data.stride() == (1, 768)
    bits = torch.randint(0, 256, (20, 96), dtype=torch.uint8, device="cuda")
    on_cpu = bk.unpack_matmul(bits.cpu(), prepared.to("cpu"))
    torch.testing.assert_close(bk.unpack_matmul(bits, prepared).cpu(), on_cpu, rtol=1e-3, atol=0.1)
