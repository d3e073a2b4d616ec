"""What follows the sums of a projection: factors, bias, the gate; and the sums of channels that were split."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import INTERPRET, rounded, widened


@triton.jit
def operand(value, dtype: tl.constexpr):
    """A loaded weight as tensor cores, or the interpreter, take it."""
    if value.dtype == tl.uint8:
        value = value.to(tl.float8e4nv, bitcast=True)
    if INTERPRET and dtype == tl.float32:
        return widened(value)
    else:
        return value


@triton.jit
def finished(total, factors, token_scale, bias, row, n, row_exists, n_exists):
    """Sums over all channels -> float32 results, for rows (if row_exists is None, one that does) and columns of shapes
    that broadcast with them."""
    y = total.to(tl.float32)
    if factors is not None:
        y *= tl.load(factors + n, mask=n_exists, other=0)
    if token_scale is not None:
        if row_exists is None:
            y *= widened(tl.load(token_scale + row))
        else:
            y *= widened(tl.load(token_scale + row, mask=row_exists, other=0))
    if bias is not None:
        y += widened(tl.load(bias + n, mask=n_exists, other=0))
    return y


@triton.jit
def gelu(x):
    """In its approximation by tanh: x (1 + tanh u) / 2 = x / (1 + exp(-2 u)), 0 where tanh rounds to -1 in float32."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.where(u < -9.01, 0.0, 1.0 / (1.0 + tl.exp(-2.0 * u)))


@triton.jit
def columns_of(tile, n_columns, BN: tl.constexpr, GATED: tl.constexpr):
    """The first result of a tile of columns; the columns of the weight that it takes, and which of them exist. A tile
    of a gated projection is as many of the gate's columns and then the same ones of the other half."""
    WIDE: tl.constexpr = BN // 2 if GATED else BN
    n_out = n_columns // 2 if GATED else n_columns
    first = tile * WIDE
    column = first + tl.arange(0, BN) % WIDE
    return first, column + (tl.arange(0, BN) // WIDE) * n_out, column < n_out


@triton.jit
def write(
    total, out, factors, token_scale, bias, row, m, first, n, exists, n_columns, part, SPLIT: tl.constexpr,
    GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile (BM, BN) of sums -> out (M, N), or with SPLIT > 1 its place in out (SPLIT, M, N) for `add_parts`."""
    row = row[:, None]
    if SPLIT > 1:
        tl.store(out + (part * m + row) * n_columns + n[None, :], total, mask=(row < m) & exists[None, :])
    else:
        y = finished(total, factors, token_scale, bias, row, n[None, :], row < m, exists[None, :])
        n_out = n_columns
        WIDE: tl.constexpr = BN // 2 if GATED else BN
        if GATED:
            n_out = n_columns // 2
            gate, linear = tl.split(tl.permute(tl.reshape(y, (BM, 2, WIDE)), (0, 2, 1)))
            y = gelu(gate) * linear
        column = (first + tl.arange(0, WIDE))[None, :]
        tl.store(out + row * n_out + column, rounded(y, out.dtype.element_ty), mask=(row < m) & (column < n_out))


@triton.jit(do_not_specialize=["m"])
def _add_parts(
    parts, factors, bias, token_scale, out, m, n_columns,
    SPLIT: tl.constexpr, GATED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """parts (SPLIT, M, N) -> out (M, N): the parts added in their order, then what a program does without SPLIT."""
    n_out = n_columns // 2 if GATED else n_columns
    blocks = tl.cdiv(n_out, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    n = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    inside = n < n_out
    y = finished(_sum(parts, row, n, m, n_columns, inside, SPLIT), factors, token_scale, bias, row, n, None, inside)
    if GATED:
        other = n + n_out
        total = _sum(parts, row, other, m, n_columns, inside, SPLIT)
        y = gelu(y) * finished(total, factors, token_scale, bias, row, other, None, inside)
    tl.store(out + row * n_out + n, rounded(y, out.dtype.element_ty), mask=inside)


@triton.jit
def _sum(parts, row, n, m, n_columns, inside, SPLIT: tl.constexpr):
    total = tl.load(parts + row * n_columns + n, mask=inside, other=0)
    for i in tl.static_range(1, SPLIT):
        total += tl.load(parts + (i * m + row) * n_columns + n, mask=inside, other=0)
    return total


#: Results that a program of `_add_parts` makes, of one row.
_COLUMNS = 256


def add_parts(
    parts: Tensor,
    factors: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out: Tensor,
    gated: bool,
) -> None:
    """parts (SPLIT, M, N) -> out, on the current device."""
    split, m, n = parts.shape
    _add_parts[(m * triton.cdiv(n // 2 if gated else n, _COLUMNS),)](
        parts, factors, bias, token_scale, out, m, n,
        SPLIT=split, GATED=gated, COLUMNS=_COLUMNS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
