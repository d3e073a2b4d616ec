"""Masked bits: which channels of a token are stored, and where in its code."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import power_of_two

#: Bytes of tokens that a program handles at a time: with 4 warps, 16 a thread, which are loaded and stored at once.
_TILE = 2048
_NARROWEST, _WIDEST = 16, 512


@triton.jit
def tokens_of_program(ids, tokens, table_rows, ROWS: tl.constexpr):
    """The tokens of this program (ROWS,), the row of each one's id in the tables (the nearest for an id that has none),
    both int64, and the bits of its code that are used so far: none."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(ids + token, mask=token < tokens, other=0).to(tl.int64)
    return token, tl.minimum(tl.maximum(row, 0), table_rows - 1), tl.zeros((ROWS,), dtype=tl.int32)


@triton.jit
def stored_channels(mask, token, row, used, tokens, step, w, BYTES: tl.constexpr):
    """A step over the rows, BYTES of each: which bytes, which of them exist, their masks, the place of the first bit of
    each in the code, (ROWS, BYTES) int32, and what is used of the codes after them."""
    byte = step * BYTES + tl.arange(0, BYTES)[None, :]
    inside = (token < tokens)[:, None] & (byte < w)
    stored = tl.load(mask + row[:, None] * w + byte, mask=inside, other=0).to(tl.int32)
    count = stored - ((stored >> 1) & 0x55)
    count = (count & 0x33) + ((count >> 2) & 0x33)
    count = (count + (count >> 4)) & 15
    place = used[:, None] + tl.cumsum(count, axis=1) - count
    return byte, inside, stored, place, used + tl.sum(count, axis=1)


def tiling(tokens: int, w: int) -> dict[str, int]:
    """Programs, and the constants of a kernel that walks over rows of w bytes: ROWS and BYTES of a tile, STEPS of them
    in a row."""
    columns = min(max(power_of_two(w), _NARROWEST), _WIDEST)
    rows = _TILE // columns
    return {"programs": triton.cdiv(tokens, rows), "ROWS": rows, "BYTES": columns, "STEPS": triton.cdiv(w, columns)}
