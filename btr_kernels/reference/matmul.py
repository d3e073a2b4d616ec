"""Definition of the fused binary-to-float projection."""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import signs


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


def unpack_matmul_prepared(
    bits: Tensor,
    data: Tensor,
    row_scale: Tensor | None,
    precision: str,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """The same with W = row_scale[:, None] * data, any scale folded in; precision tells what W was rounded to."""
    y = signs(bits, data.shape[1]) @ data.float().T
    if row_scale is not None:
        y = y * row_scale
    return _epilogue(y, bias, token_scale, out_dtype)
