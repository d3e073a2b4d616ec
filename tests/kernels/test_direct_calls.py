"""torch.ops.btr.* called past the public functions: wrong arguments give an error, never a crash or a wrong read."""

from __future__ import annotations

import pytest
import torch

import btr_kernels as bk

from .cases import OPERATORS, WITH_OUT, sample

ops = torch.ops.btr
X = torch.randn(2, 5, 20)
BITS = bk.pack_bits(X)
PACKED = BITS.flatten(0, 1)
W = torch.randn(6, 20)
ONES = torch.ones(20)
SLOT = torch.zeros(2, 5, dtype=torch.int32)
OFFSETS = torch.tensor([0, 5, 10])
F32 = torch.float32


def rows(*cases):
    return [pytest.param(*case, id=f"{i}-{case[0]}") for i, case in enumerate(cases)]


NAMED = rows(
    ("norm", lambda: ops.binarize(X, "batch", 1e-6, False)),
    ("norm", lambda: ops.sign_scale(X, ONES, "", 1e-6, "ste", 2.0)),
    ("eps", lambda: ops.binarize(X, "rms", -1.0, True)),
    ("eps", lambda: ops.sign_scale(X, ONES, "rms", float("nan"), "ste", 2.0)),
    ("grad", lambda: ops.sign_scale(X, ONES, "rms", 1e-6, "relu", 2.0)),
    ("limit", lambda: ops.sign_scale(X, ONES, "rms", 1e-6, "ste", 0.0)),
    ("grad_out", lambda: ops.sign_scale_backward(X[:1], X, ONES, "rms", 1e-6, "ste", 2.0)),
    ("grad_out", lambda: ops.sign_scale_backward(X.half(), X, ONES, "rms", 1e-6, "ste", 2.0)),
    ("d", lambda: ops.unpack_bits(BITS, 0, None, None, None, F32)),
    ("bits", lambda: ops.unpack_bits(BITS, 2**62, None, None, None, F32)),
    ("bits", lambda: ops.unpack_bits(BITS, 25, None, None, None, F32)),
    ("dtype", lambda: ops.unpack_bits(BITS, 20, None, None, None, torch.int8)),
    ("weight", lambda: ops.unpack_matmul(BITS, W.to(torch.int8), None, None, None, F32)),
    ("weight", lambda: ops.unpack_matmul(BITS, W[:, :0], None, None, None, F32)),
    ("weight", lambda: ops.unpack_matmul_prepared(BITS, W.T.long(), None, "int8", None, None, F32)),
    ("factors", lambda: ops.unpack_matmul_prepared(BITS, W.T, ONES, "exact", None, None, F32)),
    ("factors", lambda: ops.unpack_matmul_prepared(BITS, W.T.to(torch.int8), None, "int8", None, None, F32)),
    ("factors", lambda: ops.unpack_matmul_prepared(BITS, W.T.to(torch.int8), ONES[:6], "int8", None, None, F32)),
    ("factors", lambda: ops.unpack_matmul_prepared(BITS, W.T.short(), W[:1].half(), "fast", None, None, F32)),
    ("precision", lambda: ops.unpack_matmul_prepared(BITS, W.T, None, "int3", None, None, F32)),
    ("b", lambda: ops.hamming_distance(PACKED, PACKED[:, :1])),
    ("k", lambda: ops.hamming_topk(PACKED, PACKED, -1)),
    ("k", lambda: ops.hamming_topk(PACKED, PACKED, 2**40)),
    ("keep", lambda: ops.match_tokens(BITS, torch.tensor([0, 1]), None, None)),
    ("keep", lambda: ops.match_tokens(BITS, torch.tensor([1]), None, None)),
    ("lengths", lambda: ops.match_tokens(BITS, torch.tensor([1, 1]), torch.tensor([6, 0]), None)),
    ("lengths", lambda: ops.match_tokens(PACKED, torch.tensor([1, 1]), torch.tensor([5, 5]), OFFSETS)),
    ("cu_seqlens", lambda: ops.match_tokens(PACKED, torch.tensor([1, 1]), None, OFFSETS.flip(0))),
    ("rows", lambda: ops.merge_bits(BITS, SLOT, None, -1, None, None)),
    ("plan.slot", lambda: ops.merge_bits(BITS, SLOT, None, 0, None, None)),
    ("plan.slot", lambda: ops.merge_tokens(X, SLOT + 9, None, 3, None, None)),
    ("plan.slot", lambda: ops.merge_tokens_backward(X, SLOT + 9, None, SLOT, None, None)),
    ("plan.slot", lambda: ops.merge_tokens_backward(X, SLOT[:1], None, SLOT, None, None)),
    ("new_sizes", lambda: ops.merge_tokens_backward(X, SLOT, None, SLOT[:, 1:], None, None)),
    ("plan", lambda: ops.merge_bits(PACKED, SLOT.flatten(), None, 4, OFFSETS, None)),
    ("plan", lambda: ops.merge_bits(BITS, SLOT, None, 4, None, OFFSETS)),
    ("plan.cu_seqlens", lambda: ops.merge_bits(PACKED, SLOT.flatten(), None, 4, OFFSETS, OFFSETS)),
    ("plan.cu_seqlens", lambda: ops.merge_bits(PACKED, SLOT.flatten(), None, 4, OFFSETS, OFFSETS[:1])),
)


@pytest.mark.parametrize("name, call", NAMED)
def test_error_names_the_argument(name, call, implementation):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
        call()


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize("wrong", ["dtype", "shape", "dims", "device"])
def test_wrong_out_is_refused_before_anything_is_written(name, wrong, implementation):
    args = sample(name, 3, 9)
    (result,) = OPERATORS[name](*args)
    out = {
        "dtype": torch.zeros_like(result, dtype=torch.int16),
        "shape": torch.zeros((*result.shape[:-1], result.shape[-1] + 1), dtype=result.dtype),
        "dims": torch.zeros((1, *result.shape), dtype=result.dtype),
        "device": torch.zeros_like(result, device="meta"),
    }[wrong]
    with pytest.raises((TypeError, ValueError), match="^out: expected "):
        OPERATORS[name].out(*args, out)
    assert wrong == "device" or not out.any()


SWAPPED = (None, 3, "text", torch.zeros(0), torch.zeros((), dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("name", OPERATORS)
def test_any_argument_replaced_by_another_type_raises_or_still_means_something(name, implementation):
    """Every position gets every odd value: an exception, or a result of a declared shape, never a crash."""
    args = sample(name, 3, 9)
    refused = 0
    for position in range(len(args)):
        for value in SWAPPED:
            changed = (*args[:position], value, *args[position + 1 :])
            try:
                results = OPERATORS[name](*changed)
            except (TypeError, ValueError, RuntimeError) as error:
                assert str(error)
                refused += 1
            else:
                assert all(isinstance(result, torch.Tensor) for result in results)
    assert refused >= len(args)


def test_meta_tensors_give_shapes_without_data():
    assert bk.pack_bits(torch.empty(3, 20, device="meta")).shape == (3, 3)
    y = bk.unpack_matmul(BITS.to("meta"), W.to("meta"))
    assert y.shape == (2, 5, 6) and y.device.type == "meta"
