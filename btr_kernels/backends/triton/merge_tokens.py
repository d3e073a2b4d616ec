"""Weighted means of the tokens of each row. Bound by reading x, each token once."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from .common import rounded, widened
from .merging import merge, rows_of

#: Sums that a program holds: with 4 warps, 16 a thread.
_TILE = 2048


@triton.jit(do_not_specialize=["rows"])
def _merge_tokens(
    x, sizes, order, first, count, out, new_sizes, rows, d, column_programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out (rows, d) and new_sizes (rows,) of the tokens order[first : first + count] of each row, summed in order."""
    row, inside, begin, number, channel, leads = rows_of(first, count, rows, column_programs, ROWS, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    votes = tl.zeros((ROWS,), tl.int32)
    for k in range(0, tl.max(number, axis=0)):
        there = inside & (k < number)
        token = tl.load(order + begin + k, mask=there, other=0).to(tl.int64)
        size = there.to(tl.int32)
        if sizes is not None:
            size = tl.load(sizes + token, mask=there, other=0)
        mask = there[:, None] & (channel < d)[None, :]
        value = widened(tl.load(x + token[:, None] * d + channel[None, :], mask=mask, other=0))
        total += value * size.to(tl.float32)[:, None]
        votes += size
    mean = total / tl.maximum(votes, 1).to(tl.float32)[:, None]
    place = out + row[:, None] * d + channel[None, :]
    tl.store(place, rounded(mean, out.dtype.element_ty), mask=inside[:, None] & (channel < d)[None, :])
    if leads:
        tl.store(new_sizes + row, votes, mask=inside)


merge_tokens = partial(merge, _merge_tokens, _TILE)
