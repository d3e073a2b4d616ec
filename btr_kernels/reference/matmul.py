"""Definition of the fused binary-to-float projection."""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import as_rows, signs

#: Channels that share a factor in a weight prepared as "fast".
BLOCK = 64


def _epilogue(y: Tensor, bias: Tensor | None, token_scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    if token_scale is not None:
        y = y * token_scale.float().unsqueeze(-1)
    if bias is not None:
        y = y + bias.float()
    return y.to(out_dtype)


def unpack_matmul(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """token_scale * ((+-1 * scale) @ weight.T) + bias with float32 products and sums."""
    x = signs(bits, weight.shape[1])
    if scale is not None:
        x *= scale.float()
    return _epilogue(x @ weight.float().T, bias, token_scale, out_dtype)


def unpack_matmul_backward(
    grad: Tensor,
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    token_scale: Tensor | None,
    for_weight: bool,
    for_scale: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `unpack_matmul` in weight and scale, each empty if it is not asked for."""
    return gradients(grad, signs(bits, weight.shape[1]), weight, scale, token_scale, for_weight, for_scale)


def gradients(
    grad: Tensor,
    signs: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    token_scale: Tensor | None,
    for_weight: bool,
    for_scale: bool,
) -> tuple[Tensor, Tensor]:
    """`unpack_matmul_backward` of unpacked tokens. Both gradients follow from that of weight * scale, an (N, d) matrix:
    no (M, d) gradient is needed."""
    g = as_rows(grad).float()
    if token_scale is not None:
        g = g * token_scale.flatten().float().unsqueeze(-1)
    product = g.T @ as_rows(signs)
    grad_weight, grad_scale = weight.new_empty(0), weight.new_empty(0, dtype=torch.float32)
    if for_weight:
        grad_weight = (product if scale is None else product * scale.float()).to(weight.dtype)
    if for_scale:
        grad_scale = (product * weight.float()).sum(0).to(scale.dtype)
    return grad_weight, grad_scale


def unpack_matmul_prepared(
    bits: Tensor,
    data: Tensor,
    factors: Tensor | None,
    precision: str,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """The same with weight.T = data (d, N), any scale folded in. Sums count `factors` (blocks, N) each: one for each
    BLOCK channels of int16 data, else one block."""
    x, data = signs(bits, data.shape[0]), data.float()
    if factors is None:
        y = x @ data
    elif factors.shape[0] == 1:
        y = (x @ data) * factors[0]
    else:
        y = x.new_zeros(*x.shape[:-1], data.shape[1])
        for block, (part, rows) in enumerate(zip(x.split(BLOCK, -1), data.split(BLOCK), strict=True)):
            y += (part @ rows) * factors[block]
    return _epilogue(y, bias, token_scale, out_dtype)


def geglu(y: Tensor) -> Tensor:
    """gelu of the first half of the columns, in its approximation by tanh, times the other half."""
    gate, linear = y.chunk(2, -1)
    return torch.nn.functional.gelu(gate, approximate="tanh") * linear


def unpack_geglu(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """`geglu` of an `unpack_matmul` in float32."""
    return geglu(unpack_matmul(bits, weight, scale, bias, token_scale, torch.float32)).to(out_dtype)


def unpack_geglu_prepared(
    bits: Tensor,
    data: Tensor,
    factors: Tensor | None,
    precision: str,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """`geglu` of an `unpack_matmul_prepared` in float32."""
    y = unpack_matmul_prepared(bits, data, factors, precision, bias, token_scale, torch.float32)
    return geglu(y).to(out_dtype)


def token_linear(
    x: Tensor, weight: Tensor, norm: Tensor | None, eps: float, residual: Tensor | None, gated: bool
) -> Tensor:
    """rms_norm(x) @ weight.T, `geglu` of it if gated, + residual, computed in float32."""
    y = x.float()
    if norm is not None:
        y = torch.nn.functional.rms_norm(y, norm.shape, norm.float(), eps)
    y = y @ weight.float().T
    if gated:
        y = geglu(y)
    if residual is not None:
        y = y + residual.float()
    return y.to(x.dtype)
