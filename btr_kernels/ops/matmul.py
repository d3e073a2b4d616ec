"""Schemas, checks, fakes and gradients of the projections."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..reference import as_rows
from ..reference.matmul import BLOCK
from .define import Result, define, register_autograd

_WEIGHTS = checks.FLOATS


def _epilogue(
    bits: Tensor, n: int, bias: Tensor | None, token_scale: Tensor | None, out_dtype: torch.dtype
) -> list[Result]:
    checks.channels("bias", bias, n, bits.device, "(N,)")
    checks.per_token("token_scale", token_scale, bits.shape[:-1], bits.device)
    checks.is_dtype("out_dtype", out_dtype, checks.FLOATS)
    return [Result((*bits.shape[:-1], n), out_dtype)]


def _weight(name: str, weight: Tensor, bits: Tensor, allowed: tuple[torch.dtype, ...], shape: str) -> None:
    """Dtype, dimensions and device; `shape` is "(N, d)" or "(d, N)"."""
    checks.packed("bits", bits)
    checks.has_dtype(name, weight, allowed)
    checks.has_dims(name, weight, 2, shape)
    d = weight.shape[shape == "(N, d)"]
    if d < 1:
        raise ValueError(f"{name}: expected {shape} with d >= 1, got {tuple(weight.shape)}")
    checks.on_device(name, weight, bits.device)
    checks.packed_for("bits", bits, d)


def _unpack_matmul(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> list[Result]:
    _weight("weight", weight, bits, _WEIGHTS, "(N, d)")
    n, d = weight.shape
    checks.channels("scale", scale, d, bits.device)
    return _epilogue(bits, n, bias, token_scale, out_dtype)


_ARGUMENTS = "Tensor bits, Tensor weight, Tensor? scale, Tensor? bias, Tensor? token_scale, ScalarType out_dtype"
define("unpack_matmul", _ARGUMENTS, _unpack_matmul, out=True)


def _context(ctx, inputs, output) -> None:
    bits, weight, scale, bias, token_scale, _ = inputs
    ctx.bias_dtype = bias.dtype if bias is not None else None
    ctx.save_for_backward(bits, weight, scale, token_scale)


def _backward(ctx, grad):
    bits, weight, scale, token_scale = ctx.saved_tensors
    _, need_weight, need_scale, need_bias, need_token_scale, _ = ctx.needs_input_grad
    grad_weight = grad_scale = grad_bias = grad_token_scale = None
    if need_bias:
        grad_bias = as_rows(grad).float().sum(0).to(ctx.bias_dtype)
    if need_token_scale:
        plain = torch.ops.btr.unpack_matmul(bits, weight, scale, None, None, torch.float32)
        grad_token_scale = (grad.float() * plain).sum(-1).to(token_scale.dtype)
    if need_weight or need_scale:
        found = torch.ops.btr.unpack_matmul_backward(grad, bits, weight, scale, token_scale, need_weight, need_scale)
        grad_weight, grad_scale = (
            g if need else None for g, need in zip(found, (need_weight, need_scale), strict=True)
        )
    return None, grad_weight, grad_scale, grad_bias, grad_token_scale, None


register_autograd("unpack_matmul", _context, _backward)


def _unpack_matmul_backward(
    grad: Tensor,
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    token_scale: Tensor | None,
    for_weight: bool,
    for_scale: bool,
) -> list[Result]:
    _unpack_matmul(bits, weight, scale, None, token_scale, torch.float32)
    checks.has_dtype("grad", grad, checks.FLOATS)
    checks.has_shape("grad", grad, (*bits.shape[:-1], weight.shape[0]), "(..., N)")
    checks.on_device("grad", grad, bits.device)
    if for_scale and scale is None:
        raise ValueError("scale: expected a tensor since its gradient is asked for, got None")
    return [
        Result(weight.shape if for_weight else (0,), weight.dtype),
        Result(scale.shape, scale.dtype) if for_scale else Result((0,), torch.float32),
    ]


define(
    "unpack_matmul_backward",
    "Tensor grad, Tensor bits, Tensor weight, Tensor? scale, Tensor? token_scale, bool for_weight, bool for_scale",
    _unpack_matmul_backward,
    results=2,
)


def _backward_context(ctx, inputs, output) -> None:
    *tensors, ctx.for_weight, ctx.for_scale = inputs
    ctx.save_for_backward(*tensors)


def _second_derivatives(ctx, u, v):
    """With P = (grad * token_scale).T @ +-1, the results are P * scale and sum(P * weight) over columns."""
    grad, bits, weight, scale, token_scale = ctx.saved_tensors
    need_grad, _, need_weight, need_scale, need_token_scale, *_ = ctx.needs_input_grad
    grad_grad = grad_weight = grad_scale = grad_token_scale = None
    if need_grad or need_token_scale:
        of_product = torch.zeros_like(weight, dtype=torch.float32)
        if ctx.for_weight:
            of_product = of_product + (u.float() if scale is None else u.float() * scale.float())
        if ctx.for_scale:
            of_product = of_product + weight.float() * v.float()
    if need_grad:
        grad_grad = torch.ops.btr.unpack_matmul(bits, of_product, None, None, token_scale, grad.dtype)
    if need_token_scale:
        plain = torch.ops.btr.unpack_matmul(bits, of_product, None, None, None, torch.float32)
        grad_token_scale = (grad.float() * plain).sum(-1).to(token_scale.dtype)
    if (need_weight and ctx.for_scale) or (need_scale and ctx.for_weight):
        product, _ = torch.ops.btr.unpack_matmul_backward(grad, bits, weight.float(), None, token_scale, True, False)
        if need_weight and ctx.for_scale:
            grad_weight = (product * v.float()).to(weight.dtype)
        if need_scale and ctx.for_weight:
            grad_scale = (product * u.float()).sum(0).to(scale.dtype)
    return grad_grad, None, grad_weight, grad_scale, grad_token_scale, None, None


register_autograd("unpack_matmul_backward", _backward_context, _second_derivatives)


#: How a prepared weight may be stored, and the channels that share one of its factors (None: all of them).
_STORED = {
    "exact": dict.fromkeys(_WEIGHTS),
    "fast": {torch.int16: BLOCK, torch.float16: None},
    "int8": {torch.int8: None},
    "fp8": {torch.float8_e4m3fn: None},
}


def _unpack_matmul_prepared(
    bits: Tensor,
    data: Tensor,
    factors: Tensor | None,
    precision: str,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> list[Result]:
    checks.is_one_of("precision", precision, tuple(_STORED))
    _weight("weight", data, bits, tuple(_STORED[precision]), "(d, N)")
    block = _STORED[precision][data.dtype]
    d, n = data.shape
    if precision == "exact":
        if factors is not None:
            raise ValueError("factors: expected None with precision 'exact', got a tensor")
    else:
        blocks = 1 if block is None else -(-d // block)
        if factors is None:
            raise ValueError(f"factors: expected float32 {(blocks, n)} with precision {precision!r}, got None")
        checks.has_dtype("factors", factors, (torch.float32,))
        checks.has_shape("factors", factors, (blocks, n), "(blocks, N)")
        checks.on_device("factors", factors, bits.device)
    return _epilogue(bits, n, bias, token_scale, out_dtype)


_PREPARED_ARGUMENTS = (
    "Tensor bits, Tensor data, Tensor? factors, str precision, Tensor? bias, Tensor? token_scale, ScalarType out_dtype"
)
define("unpack_matmul_prepared", _PREPARED_ARGUMENTS, _unpack_matmul_prepared, out=True)


def _halved(name: str, results: list[Result], weight_shape: str) -> list[Result]:
    """Of the columns of a projection, half are the gate's."""
    ((shape, dtype),) = results
    if shape[-1] % 2:
        raise ValueError(f"{name}: expected {weight_shape}, an even number of projections, got {shape[-1]}")
    return [Result((*shape[:-1], shape[-1] // 2), dtype)]


def _unpack_geglu(*args) -> list[Result]:
    return _halved("weight", _unpack_matmul(*args), "(2 N, d)")


def _unpack_geglu_prepared(*args) -> list[Result]:
    return _halved("weight", _unpack_matmul_prepared(*args), "(d, 2 N)")


define("unpack_geglu", _ARGUMENTS, _unpack_geglu, out=True)
define("unpack_geglu_prepared", _PREPARED_ARGUMENTS, _unpack_geglu_prepared, out=True)


def _token_linear(
    x: Tensor, weight: Tensor, norm: Tensor | None, eps: float, residual: Tensor | None, gated: bool
) -> list[Result]:
    checks.floats("x", x)
    checks.has_dtype("weight", weight, _WEIGHTS)
    shape = "(2 N, d)" if gated else "(N, d)"
    checks.has_dims("weight", weight, 2, shape)
    checks.on_device("weight", weight, x.device)
    n, d = weight.shape
    if d != x.shape[-1]:
        raise ValueError(f"weight: expected {shape} with d = {x.shape[-1]} as in x, got {tuple(weight.shape)}")
    checks.channels("norm", norm, d, x.device)
    checks.is_number("eps", eps, 0.0)
    checks.is_bool("gated", gated)
    results = [Result((*x.shape[:-1], n), x.dtype)]
    if gated:
        results = _halved("weight", results, shape)
    if residual is not None:
        checks.has_dtype("residual", residual, checks.FLOATS)
        checks.has_shape("residual", residual, results[0].shape, "(..., N)")
        checks.on_device("residual", residual, x.device)
    return results


define(
    "token_linear",
    "Tensor x, Tensor weight, Tensor? norm, float eps, Tensor? residual, bool gated",
    _token_linear,
    out=True,
)
