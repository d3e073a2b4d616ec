"""Majority votes of the tokens of each row. Bound by reading bits, each token once."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from .groups import vote
from .merging import merge, rows_of

#: Bytes of bits that a program holds, each as 8 counts: with 4 warps, 32 counts a thread.
_TILE = 512


@triton.jit(do_not_specialize=["rows"])
def _merge_bits(
    bits, sizes, order, first, count, out, new_sizes, rows, w, column_programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out (rows, w) and new_sizes (rows,) of the tokens order[first : first + count] of each row."""
    row, inside, begin, number, byte, leads = rows_of(first, count, rows, column_programs, ROWS, COLUMNS)
    packed, votes = vote(bits, sizes, order, begin, number, inside, byte, w, ROWS, COLUMNS)
    tl.store(out + row[:, None] * w + byte[None, :], packed, mask=inside[:, None] & (byte < w)[None, :])
    if leads:
        tl.store(new_sizes + row, votes, mask=inside)


merge_bits = partial(merge, _merge_bits, _TILE)
