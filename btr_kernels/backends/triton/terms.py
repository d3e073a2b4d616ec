"""A matrix as a sum of bfloat16 terms, which tensor cores multiply exactly with signs.

A term holds 8 bits of the fraction: two hold an int16 exactly, three a float32. For many tokens the terms are written
once to memory, from where they stream into the multiplication as a 16-bit matrix does; for few tokens they are made in
registers, since the matrix is read about once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import rounded, widened

#: Rows of terms start at multiples of this many channels, so that they are read in 16-byte vectors.
_ALIGNED = 16
#: Tiles that make terms.
_ROWS, _CHANNELS = 16, 256


@triton.jit
def values(pointers, inside, scale, k, k_exists):
    """float32: what is there times the scale of its channel, 0 outside; channels k of a shape that broadcasts."""
    value = widened(tl.load(pointers, mask=inside, other=0))
    if scale is not None:
        value *= widened(tl.load(scale + k, mask=k_exists, other=0))
    return value


@triton.jit
def leading_term(value):
    """The part of a float32 that bfloat16 holds, cut off rather than rounded: no overflow, and three are exact."""
    cut = (value.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return tl.where(value == value, cut, value)


@triton.jit
def rest(value, term):
    """What a term leaves; nothing of an infinity."""
    return tl.where(tl.abs(value) == float("inf"), 0.0, value - term)


@triton.jit(do_not_specialize=["rows"])
def _terms(
    matrix, scale, out, rows, stride_n, stride_k, d, row, plane,
    TERMS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """matrix (N, d) -> out (TERMS, N, row) bfloat16 whose sum over terms is `values`; zeros from d to `row`."""
    blocks = tl.cdiv(row, CHANNELS)
    program = tl.program_id(0)
    n = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = (program % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    pointers = matrix + n[:, None] * stride_n + k[None, :].to(tl.int64) * stride_k
    value = values(pointers, (n < rows)[:, None] & (k < d)[None, :], scale, k[None, :], (k < d)[None, :])
    inside = (n < rows)[:, None] & (k < row)[None, :]
    for i in tl.static_range(TERMS):
        term = leading_term(value)
        tl.store(out + i * plane + n[:, None] * row + k[None, :], rounded(term, tl.bfloat16), mask=inside)
        value = rest(value, term)


def terms_of(dtype: torch.dtype, scale: Tensor | None, result: torch.dtype) -> int | None:
    """How many terms stand for a matrix of this dtype with a scale, None if it is multiplied as it is. They are exact,
    or leave an error below that of rounding to a 16-bit result."""
    if scale is None and dtype not in (torch.float32, torch.int16):
        return None
    return 3 if result == torch.float32 and dtype != torch.int16 else 2


def in_memory(matrix: Tensor, scale: Tensor | None, terms: int) -> Tensor:
    """(terms, N, row) bfloat16, on the current device: matrix (N, d) of any strides times scale (d,), contiguous."""
    n, d = matrix.shape
    row = triton.cdiv(d, _ALIGNED) * _ALIGNED
    made = matrix.new_empty((terms, n, row), dtype=torch.bfloat16)
    _terms[(triton.cdiv(n, _ROWS) * triton.cdiv(row, _CHANNELS),)](
        matrix, scale, made, n, *matrix.stride(), d, row, n * row,
        TERMS=terms, ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return made
