"""Schema, checks and fake of the attention of few tokens."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from .define import Result, define


def _token_attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, head_size: int) -> list[Result]:
    checks.floats("query", query)
    checks.has_dims("query", query, 3, "(B, n, inner)")
    batch, tokens, inner = query.shape
    checks.is_int("head_size", head_size, 1)
    if inner % head_size:
        raise ValueError(f"head_size: expected a divisor of the {inner} channels of query, got {head_size}")
    checks.has_dtype("keys", keys, (query.dtype,))
    checks.has_dims("keys", keys, 3, "(B, S, inner)")
    count = keys.shape[1]
    for name, tensor in (("keys", keys), ("values", values)):
        checks.has_dtype(name, tensor, (query.dtype,))
        checks.has_shape(name, tensor, (batch, count, inner), "(B, S, inner)")
        checks.on_device(name, tensor, query.device)
    if bias is not None:
        checks.has_dtype("bias", bias, checks.FLOATS)
        checks.on_device("bias", bias, query.device)
        full = (batch, inner // head_size, tokens, count)
        if bias.dim() != 4 or any(size not in (1, of) for size, of in zip(bias.shape, full, strict=True)):
            raise ValueError(f"bias: expected (B, heads, n, S) = {full}, or 1 for any of them, got {tuple(bias.shape)}")
    return [Result((batch, tokens, inner), query.dtype)]


define(
    "token_attention",
    "Tensor query, Tensor keys, Tensor values, Tensor? bias, int head_size",
    _token_attention,
)
