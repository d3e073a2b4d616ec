"""Wrong arguments of the public functions: the right exception, whose message begins with the argument's name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import btr_kernels as bk

X = torch.randn(2, 5, 20)
BITS = bk.pack_bits(X)
W = torch.randn(6, 20)
SCALE = torch.ones(20)
PLAN = bk.match_tokens(BITS, 3)
PACKED = BITS.flatten(0, 1)
OFFSETS = torch.tensor([0, 5, 10], dtype=torch.int32)
PACKED_PLAN = bk.match_tokens(PACKED, 3, cu_seqlens=OFFSETS)
INT32 = torch.int32


def meta(tensor):
    return tensor.to("meta")


def ints(*values, dtype=INT32):
    return torch.tensor(values, dtype=dtype)


#: What every tensor argument refuses: (value, why)
NOT_TENSORS = (np.zeros((2, 3), dtype=np.uint8), [[1, 2]], 3, "bits")

TENSOR_ARGUMENTS = {
    "x": [bk.pack_bits, bk.binarize, lambda v: bk.sign_scale(v, SCALE), lambda v: bk.merge_tokens(v, PLAN)],
    "bits": [
        lambda v: bk.unpack_bits(v, 20),
        lambda v: bk.unpack_matmul(v, W),
        lambda v: bk.match_tokens(v, 3),
        lambda v: bk.merge_bits(v, PLAN),
    ],
    "scale": [
        lambda v: bk.unpack_bits(BITS, 20, v),
        lambda v: bk.unpack_matmul(BITS, W, v),
        lambda v: bk.sign_scale(X, v),
        lambda v: bk.prepare_weight(W, v),
    ],
    "bias": [lambda v: bk.unpack_bits(BITS, 20, None, v), lambda v: bk.unpack_matmul(BITS, W, None, v)],
    "token_scale": [
        lambda v: bk.unpack_bits(BITS, 20, token_scale=v),
        lambda v: bk.unpack_matmul(BITS, W, token_scale=v),
    ],
    "weight": [lambda v: bk.unpack_matmul(BITS, v), bk.prepare_weight],
    "a": [lambda v: bk.hamming_distance(v, PACKED), lambda v: bk.hamming_topk(v, PACKED, 1)],
    "b": [lambda v: bk.hamming_distance(PACKED, v), lambda v: bk.hamming_topk(PACKED, v, 1)],
    "lengths": [lambda v: bk.match_tokens(BITS, 3, v)],
    "cu_seqlens": [lambda v: bk.match_tokens(PACKED, 3, cu_seqlens=v)],
    "sizes": [lambda v: bk.merge_bits(BITS, PLAN, v), lambda v: bk.merge_tokens(X, PLAN, v)],
    "batches": [lambda v: bk.calibrate_scale([v])],
    "out": [
        lambda v: bk.pack_bits(X, out=v),
        lambda v: bk.unpack_bits(BITS, 20, out=v),
        lambda v: bk.unpack_matmul(BITS, W, out=v),
        lambda v: bk.hamming_distance(PACKED, PACKED, out=v),
    ],
}


@pytest.mark.parametrize("value", NOT_TENSORS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("name", TENSOR_ARGUMENTS)
def test_what_is_not_a_tensor_is_a_type_error_naming_the_argument(name, value):
    for call in TENSOR_ARGUMENTS[name]:
        with pytest.raises(TypeError, match=f"^{name}: expected a torch.Tensor, got {type(value).__name__}"):
            call(value)


def rows(*cases):
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


WRONG_DTYPES = rows(
    ("pack float64", "x", lambda: bk.pack_bits(X.double())),
    ("pack int", "x", lambda: bk.pack_bits(X.int())),
    ("binarize bool", "x", lambda: bk.binarize(X > 0)),
    ("sign_scale float64", "x", lambda: bk.sign_scale(X.double(), SCALE)),
    ("sign_scale int scale", "scale", lambda: bk.sign_scale(X, SCALE.int())),
    ("unpack int32 bits", "bits", lambda: bk.unpack_bits(BITS.int(), 20)),
    ("unpack float64", "dtype", lambda: bk.unpack_bits(BITS, 20, dtype=torch.float64)),
    ("unpack dtype by name", "dtype", lambda: bk.unpack_bits(BITS, 20, dtype="float32")),
    ("unpack float64 scale", "scale", lambda: bk.unpack_bits(BITS, 20, SCALE.double())),
    ("unpack float64 out", "out", lambda: bk.unpack_bits(BITS, 20, out=torch.empty(2, 5, 20).int())),
    ("unpack d float", "d", lambda: bk.unpack_bits(BITS, 20.0)),
    ("unpack d bool", "d", lambda: bk.unpack_bits(BITS[..., :1], True)),
    ("unpack d str", "d", lambda: bk.unpack_bits(BITS, "20")),
    ("matmul int weight", "weight", lambda: bk.unpack_matmul(BITS, W.int())),
    ("matmul int out_dtype", "out_dtype", lambda: bk.unpack_matmul(BITS, W, out_dtype=torch.int32)),
    ("matmul out_dtype by name", "out_dtype", lambda: bk.unpack_matmul(BITS, W, out_dtype="float16")),
    (
        "matmul out_dtype in training",
        "out_dtype",
        lambda: bk.unpack_matmul(BITS, bk.prepare_weight(W), bias=torch.ones(6).requires_grad_(), out_dtype="float16"),
    ),
    ("linear weight int", "weight", lambda: bk.token_linear(X, W.int())),
    ("linear residual list", "residual", lambda: bk.token_linear(X, W, residual=[0.0])),
    ("attention keys half", "keys", lambda: bk.token_attention(X, X.half(), X, head_size=4)),
    ("attention head size", "head_size", lambda: bk.token_attention(X, X, X, head_size=4.0)),
    ("linear gated", "gated", lambda: bk.token_linear(X, W, gated="no")),
    ("linear eps", "eps", lambda: bk.token_linear(X, W, norm=SCALE, eps="1e-6")),
    ("prepare int", "weight", lambda: bk.prepare_weight(W.int())),
    ("hamming int64", "a", lambda: bk.hamming_distance(PACKED.long(), PACKED)),
    ("hamming int64 b", "b", lambda: bk.hamming_distance(PACKED, PACKED.long())),
    ("hamming out", "out", lambda: bk.hamming_distance(PACKED, PACKED, out=torch.empty(10, 10))),
    ("topk k bool", "k", lambda: bk.hamming_topk(PACKED, PACKED, True)),
    ("topk k float", "k", lambda: bk.hamming_topk(PACKED, PACKED, 2.0)),
    ("match float bits", "bits", lambda: bk.match_tokens(X, 3)),
    ("match keep bool", "keep", lambda: bk.match_tokens(BITS, True)),
    ("match keep None", "keep", lambda: bk.match_tokens(BITS, None)),
    ("match keep list", "keep", lambda: bk.match_tokens(BITS, [3, 3])),
    ("match keep float tensor", "keep", lambda: bk.match_tokens(BITS, torch.tensor([0.5, 0.5]))),
    ("match lengths float", "lengths", lambda: bk.match_tokens(BITS, 3, torch.tensor([5.0, 5.0]))),
    ("match offsets float", "cu_seqlens", lambda: bk.match_tokens(PACKED, 3, cu_seqlens=OFFSETS.float())),
    ("merge plan tuple", "plan", lambda: bk.merge_bits(BITS, tuple(PLAN))),
    ("merge plan None", "plan", lambda: bk.merge_tokens(X, None)),
    ("merge slot dtype", "plan.slot", lambda: bk.merge_bits(BITS, PLAN._replace(slot=PLAN.slot.long()))),
    ("merge sizes dtype", "sizes", lambda: bk.merge_bits(BITS, PLAN, torch.ones(2, 5))),
    ("merge bits float", "bits", lambda: bk.merge_bits(X, PLAN)),
    ("merge tokens uint8", "x", lambda: bk.merge_tokens(BITS, PLAN)),
    ("merge slot list", "plan.slot", lambda: bk.merge_bits(BITS, PLAN._replace(slot=[0]))),
    ("merge max_len str", "plan.max_len", lambda: bk.merge_bits(BITS, PLAN._replace(max_len="3"))),
    ("merge max_total None", "plan.max_total", lambda: bk.merge_bits(PACKED, PACKED_PLAN._replace(max_total=None))),
    ("calibrate tensor", "batches", lambda: bk.calibrate_scale(X)),
    ("calibrate float64", "batches", lambda: bk.calibrate_scale([X.double()])),
    ("eps str", "eps", lambda: bk.binarize(X, "rms", "small")),
    ("eps bool", "eps", lambda: bk.sign_scale(X, SCALE, "rms", True)),
    ("clamp str", "clamp", lambda: bk.sign_scale(X, SCALE, clamp="2")),
    ("beta bool", "grad", lambda: bk.sign_scale(X, SCALE, grad=("tanh", True))),
)


@pytest.mark.parametrize("name, call", WRONG_DTYPES)
def test_wrong_dtype_or_type_is_a_type_error_naming_the_argument(name, call):
    with pytest.raises(TypeError, match=f"^{name}: expected "):
        call()


WRONG_SHAPES = rows(
    ("pack scalar", "x", lambda: bk.pack_bits(torch.tensor(1.0))),
    ("pack no channels", "x", lambda: bk.pack_bits(torch.empty(3, 0))),
    ("binarize no channels", "x", lambda: bk.binarize(torch.empty(3, 0))),
    ("pack out", "out", lambda: bk.pack_bits(X, out=torch.empty(2, 5, 2, dtype=torch.uint8))),
    ("unpack d too large", "bits", lambda: bk.unpack_bits(BITS, 25)),
    ("unpack d too small", "bits", lambda: bk.unpack_bits(BITS, 16)),
    ("unpack d zero", "d", lambda: bk.unpack_bits(BITS, 0)),
    ("unpack d negative", "d", lambda: bk.unpack_bits(BITS, -20)),
    ("unpack scalar bits", "bits", lambda: bk.unpack_bits(BITS[0, 0, 0], 8)),
    ("unpack scale", "scale", lambda: bk.unpack_bits(BITS, 20, SCALE[:19])),
    ("unpack scale 2-D", "scale", lambda: bk.unpack_bits(BITS, 20, SCALE[None])),
    ("unpack bias", "bias", lambda: bk.unpack_bits(BITS, 20, None, SCALE[:1])),
    ("unpack token_scale", "token_scale", lambda: bk.unpack_bits(BITS, 20, token_scale=torch.ones(5))),
    ("sign_scale", "scale", lambda: bk.sign_scale(X, SCALE[:10])),
    ("matmul weight 1-D", "weight", lambda: bk.unpack_matmul(BITS, W[0])),
    ("matmul weight d", "bits", lambda: bk.unpack_matmul(BITS, W[:, :8])),
    ("matmul weight no channels", "weight", lambda: bk.unpack_matmul(BITS, W[:, :0])),
    ("matmul scale", "scale", lambda: bk.unpack_matmul(BITS, W, SCALE[:8])),
    ("matmul bias", "bias", lambda: bk.unpack_matmul(BITS, W, None, SCALE)),
    ("matmul token_scale", "token_scale", lambda: bk.unpack_matmul(BITS, W, token_scale=torch.ones(2, 4))),
    ("matmul out", "out", lambda: bk.unpack_matmul(BITS, W, out=torch.empty(2, 5, 7))),
    ("geglu odd rows", "weight", lambda: bk.unpack_geglu(BITS, W[:5])),
    ("geglu odd rows, prepared", "weight", lambda: bk.unpack_geglu(BITS, bk.prepare_weight(W[:5]))),
    ("geglu odd rows, training", "weight", lambda: bk.unpack_geglu(BITS, W[:5].clone().requires_grad_())),
    ("geglu weight, training", "weight", lambda: bk.unpack_geglu(BITS, W[0].clone().requires_grad_())),
    ("geglu bias", "bias", lambda: bk.unpack_geglu(BITS, W, None, SCALE[:3])),
    ("geglu out", "out", lambda: bk.unpack_geglu(BITS, W, out=torch.empty(2, 5, 6))),
    ("attention head size 3", "head_size", lambda: bk.token_attention(X, X, X, head_size=3)),
    ("attention query 2-D", "query", lambda: bk.token_attention(X[0], X, X, head_size=4)),
    ("attention values", "values", lambda: bk.token_attention(X, X, X[:, :3], head_size=4)),
    ("attention bias", "bias", lambda: bk.token_attention(X, X, X, torch.zeros(2, 3, 5, 5), head_size=4)),
    ("attention bias 3-D", "bias", lambda: bk.token_attention(X, X, X, torch.zeros(5, 5, 5), head_size=4)),
    ("linear weight d", "weight", lambda: bk.token_linear(X, W[:, :19])),
    ("linear odd rows", "weight", lambda: bk.token_linear(X, W[:5], gated=True)),
    ("linear norm", "norm", lambda: bk.token_linear(X, W, norm=SCALE[:3])),
    ("linear residual", "residual", lambda: bk.token_linear(X, W, residual=X)),
    ("linear out", "out", lambda: bk.token_linear(X, W, out=torch.empty(2, 5, 20))),
    ("linear gradient", "weight", lambda: bk.token_linear(X, W.clone().requires_grad_())),
    ("prepare 3-D", "weight", lambda: bk.prepare_weight(W[None])),
    ("prepare no channels", "weight", lambda: bk.prepare_weight(W[:, :0])),
    ("prepare scale", "scale", lambda: bk.prepare_weight(W, SCALE[:8])),
    ("hamming bytes", "b", lambda: bk.hamming_distance(PACKED, PACKED[:, :2])),
    ("hamming 1-D", "a", lambda: bk.hamming_distance(PACKED[0], PACKED)),
    ("hamming batches", "b", lambda: bk.hamming_distance(BITS, BITS[:1].expand(3, -1, -1))),
    ("hamming no bytes", "a", lambda: bk.hamming_distance(PACKED[:, :0], PACKED[:, :0])),
    ("topk 3-D", "a", lambda: bk.hamming_topk(BITS, PACKED, 1)),
    ("topk 3-D b", "b", lambda: bk.hamming_topk(PACKED, BITS, 1)),
    ("topk k", "k", lambda: bk.hamming_topk(PACKED, PACKED, 11)),
    ("topk k zero", "k", lambda: bk.hamming_topk(PACKED, PACKED, 0)),
    ("topk empty b", "k", lambda: bk.hamming_topk(PACKED, PACKED[:0], 1)),
    ("match 2-D", "bits", lambda: bk.match_tokens(PACKED, 3)),
    ("match 1-D", "bits", lambda: bk.match_tokens(PACKED[0], 3)),
    ("match 3-D packed", "bits", lambda: bk.match_tokens(BITS, 3, cu_seqlens=OFFSETS)),
    ("match keep length", "keep", lambda: bk.match_tokens(BITS, ints(3, 3, 3))),
    ("match keep scalar tensor", "keep", lambda: bk.match_tokens(BITS, torch.tensor(3))),
    ("match lengths", "lengths", lambda: bk.match_tokens(BITS, 3, ints(5, 5, 5))),
    ("match lengths 2-D", "lengths", lambda: bk.match_tokens(BITS, 0.5, ints(5, 5)[None])),
    ("match offsets scalar", "cu_seqlens", lambda: bk.match_tokens(PACKED, 3, cu_seqlens=torch.tensor(10))),
    ("match offsets empty", "cu_seqlens", lambda: bk.match_tokens(PACKED, 3, cu_seqlens=OFFSETS[:0])),
    ("match both", "lengths", lambda: bk.match_tokens(PACKED, 3, ints(5, 5), cu_seqlens=OFFSETS)),
    ("merge other n", "plan.slot", lambda: bk.merge_bits(BITS[:, :4], PLAN)),
    ("merge other batch", "plan.slot", lambda: bk.merge_tokens(X[:1], PLAN)),
    ("merge 2-D", "bits", lambda: bk.merge_bits(PACKED, PLAN)),
    ("merge 2-D floats", "x", lambda: bk.merge_tokens(X[0], PLAN)),
    ("merge 3-D packed", "bits", lambda: bk.merge_bits(BITS, PACKED_PLAN)),
    ("merge sizes", "sizes", lambda: bk.merge_bits(BITS, PLAN, ints(1, 1, 1, 1, 1))),
    ("merge offsets of padded", "cu_seqlens", lambda: bk.merge_bits(BITS, PLAN, cu_seqlens=OFFSETS)),
    ("merge offsets", "plan.cu_seqlens", lambda: bk.merge_bits(PACKED, PACKED_PLAN, cu_seqlens=ints(0, 3, 6, 10))),
    ("calibrate d", "batches", lambda: bk.calibrate_scale([X, X[..., :8]])),
    ("calibrate nothing", "batches", lambda: bk.calibrate_scale([])),
    ("calibrate no token", "batches", lambda: bk.calibrate_scale([X[:0]])),
)


@pytest.mark.parametrize("name, call", WRONG_SHAPES)
def test_wrong_shape_is_a_value_error_naming_the_argument(name, call):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        call()


WRONG_DEVICES = rows(
    ("unpack scale", "scale", lambda: bk.unpack_bits(BITS, 20, meta(SCALE))),
    ("unpack bias", "bias", lambda: bk.unpack_bits(BITS, 20, None, meta(SCALE))),
    ("unpack token_scale", "token_scale", lambda: bk.unpack_bits(BITS, 20, token_scale=meta(torch.ones(2, 5)))),
    ("pack out", "out", lambda: bk.pack_bits(X, out=meta(BITS))),
    ("sign_scale", "scale", lambda: bk.sign_scale(X, meta(SCALE))),
    ("matmul weight", "weight", lambda: bk.unpack_matmul(BITS, meta(W))),
    ("matmul scale", "scale", lambda: bk.unpack_matmul(BITS, W, meta(SCALE))),
    ("prepare scale", "scale", lambda: bk.prepare_weight(W, meta(SCALE))),
    ("hamming", "b", lambda: bk.hamming_distance(PACKED, meta(PACKED))),
    ("topk", "b", lambda: bk.hamming_topk(PACKED, meta(PACKED), 1)),
    ("match keep", "keep", lambda: bk.match_tokens(BITS, meta(ints(3, 3)))),
    ("match lengths", "lengths", lambda: bk.match_tokens(BITS, 3, meta(ints(3, 3)))),
    ("match offsets", "cu_seqlens", lambda: bk.match_tokens(PACKED, 3, cu_seqlens=meta(OFFSETS))),
    ("merge slot", "plan.slot", lambda: bk.merge_bits(BITS, PLAN._replace(slot=meta(PLAN.slot)))),
    ("merge sizes", "sizes", lambda: bk.merge_tokens(X, PLAN, meta(PLAN.slot))),
)


@pytest.mark.parametrize("name, call", WRONG_DEVICES)
def test_other_device_is_a_value_error_naming_the_argument(name, call):
    with pytest.raises(ValueError, match=f"^{name}: expected device cpu|^{name}: expected device meta"):
        call()


WRONG_CHOICES = rows(
    ("norm", "norm", lambda: bk.binarize(X, "batch")),
    ("norm none by name", "norm", lambda: bk.sign_scale(X, SCALE, "none")),
    ("norm calibrate", "norm", lambda: bk.calibrate_scale([X], 1)),
    ("eps negative", "eps", lambda: bk.binarize(X, "rms", -1e-6)),
    ("eps NaN", "eps", lambda: bk.calibrate_scale([X], "rms", math.nan)),
    ("grad", "grad", lambda: bk.sign_scale(X, SCALE, grad="relu")),
    ("grad tuple", "grad", lambda: bk.sign_scale(X, SCALE, grad=("ste", 1.0))),
    ("grad beta", "grad", lambda: bk.sign_scale(X, SCALE, grad=("tanh", 0.0))),
    ("clamp", "clamp", lambda: bk.sign_scale(X, SCALE, clamp=0.0)),
    ("clamp NaN", "clamp", lambda: bk.sign_scale(X, SCALE, clamp=math.nan)),
    ("precision", "precision", lambda: bk.prepare_weight(W, precision="int4")),
    ("fp8 on a CPU", "precision", lambda: bk.prepare_weight(W, precision="fp8")),
    ("second scale", "scale", lambda: bk.unpack_matmul(BITS, bk.prepare_weight(W, SCALE), SCALE)),
    ("weight inf", "weight", lambda: bk.prepare_weight(W.clone().fill_(math.inf))),
    ("weight NaN", "weight", lambda: bk.prepare_weight(W, SCALE * math.nan, "int8")),
)


@pytest.mark.parametrize("name, call", WRONG_CHOICES)
def test_unknown_choice_or_number_out_of_range_is_a_value_error_naming_the_argument(name, call):
    with pytest.raises(ValueError, match=f"^{name}: expected |^{name}: 'fp8' needs a GPU"):
        call()


def tampered(*values):
    return PLAN._replace(slot=ints(*values).reshape(2, 5))


WRONG_VALUES = rows(
    ("keep 0", "keep", lambda: bk.match_tokens(BITS, 0)),
    ("keep -1", "keep", lambda: bk.match_tokens(BITS, -1)),
    ("keep 0.0", "keep", lambda: bk.match_tokens(BITS, 0.0)),
    ("keep 1.5", "keep", lambda: bk.match_tokens(BITS, 1.5)),
    ("keep NaN", "keep", lambda: bk.match_tokens(BITS, math.nan)),
    ("keep tensor with 0", "keep", lambda: bk.match_tokens(BITS, ints(3, 0))),
    ("lengths above n", "lengths", lambda: bk.match_tokens(BITS, 3, ints(5, 6))),
    ("lengths negative", "lengths", lambda: bk.match_tokens(BITS, 3, ints(5, -1))),
    ("lengths huge", "lengths", lambda: bk.match_tokens(BITS, 3, ints(5, 2**40, dtype=torch.int64))),
    ("offsets decrease", "cu_seqlens", lambda: bk.match_tokens(PACKED, 3, cu_seqlens=ints(0, 7, 5, 10))),
    ("offsets past the end", "cu_seqlens", lambda: bk.match_tokens(PACKED, 3, cu_seqlens=ints(0, 5, 11))),
    ("offsets before the end", "cu_seqlens", lambda: bk.match_tokens(PACKED, 3, cu_seqlens=ints(0, 5, 9))),
    ("offsets not from 0", "cu_seqlens", lambda: bk.match_tokens(PACKED, 3, cu_seqlens=ints(1, 5, 10))),
    ("slot above", "plan.slot", lambda: bk.merge_bits(BITS, tampered(0, 1, 2, 3, 0, 0, 0, 0, 0, 0))),
    ("slot below", "plan.slot", lambda: bk.merge_tokens(X, tampered(0, 1, 2, -2, 0, 0, 0, 0, 0, 0))),
    ("slot huge", "plan.slot", lambda: bk.merge_bits(BITS, tampered(0, 1, 2**31 - 1, 0, 0, 0, 0, 0, 0, 0))),
    ("max_len negative", "plan.max_len", lambda: bk.merge_bits(BITS, PLAN._replace(max_len=-1))),
    ("max_len too small", "plan.slot", lambda: bk.merge_bits(BITS, PLAN._replace(max_len=1))),
    ("sizes negative", "sizes", lambda: bk.merge_bits(BITS, PLAN, -torch.ones_like(PLAN.slot))),
    ("sizes overflow", "sizes", lambda: bk.merge_tokens(X, PLAN, torch.full_like(PLAN.slot, 2**30))),
    (
        "slot of another passage",
        "plan.slot",
        lambda: bk.merge_bits(PACKED, PACKED_PLAN._replace(slot=torch.full((10,), 3, dtype=INT32))),
    ),
    (
        "new offsets past the end",
        "plan.cu_seqlens",
        lambda: bk.merge_bits(PACKED, PACKED_PLAN._replace(cu_seqlens=ints(0, 3, 7))),
    ),
    (
        "new offsets decrease",
        "plan.cu_seqlens",
        lambda: bk.merge_tokens(X.flatten(0, 1), PACKED_PLAN._replace(cu_seqlens=ints(0, 4, 3))),
    ),
    ("other offsets", "cu_seqlens", lambda: bk.merge_bits(PACKED, PACKED_PLAN, cu_seqlens=ints(0, 5, 11))),
)


@pytest.mark.parametrize("name, call", WRONG_VALUES)
def test_wrong_value_in_a_tensor_is_a_value_error_naming_the_argument(name, call, implementation):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        call()


def test_errors_also_come_when_a_compiled_graph_is_made():
    with pytest.raises(Exception, match="bits: expected 3 bytes in the last dimension for d = 20"):
        torch.compile(lambda b: bk.unpack_bits(b, 20), fullgraph=True, backend="aot_eager")(BITS[..., :2])


def test_layouts_that_are_not_dense_are_refused():
    for call in (lambda: bk.pack_bits(torch.eye(8).to_sparse()), lambda: bk.unpack_matmul(BITS, W.to_sparse())):
        with pytest.raises(TypeError, match="expected a dense tensor"):
            call()
    with pytest.raises(TypeError, match="^weight: expected a torch.Tensor"):
        bk.unpack_geglu(BITS, None, bias=torch.ones(6).requires_grad_())


def test_distances_that_exceed_int32_are_refused():
    a = torch.empty(1, 2**28, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="^a: expected less than 2"):
        bk.hamming_distance(a, a)
