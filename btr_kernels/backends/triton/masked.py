"""Masked bits: which channels of a token are stored, and where in its code."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import power_of_two

#: Bytes of tokens that a program handles at a time: with 4 warps, 16 a thread, which are loaded and stored at once.
_TILE = 2048
_NARROWEST, _WIDEST = 16, 512


@triton.jit
def row_of_id(ids, token, tokens, table_rows):
    """The row of each token's id, int64; the nearest for an id that has none."""
    row = tl.load(ids + token, mask=token < tokens, other=0).to(tl.int64)
    return tl.minimum(tl.maximum(row, 0), table_rows - 1)


@triton.jit
def places(mask, used):
    """For a tile of mask bytes (rows, bytes), of whose rows `used` (rows,) bits of the code are used before it: the
    place of the first bit of each byte in the code, and what is used after the tile; int32."""
    count = mask - ((mask >> 1) & 0x55)
    count = (count & 0x33) + ((count >> 2) & 0x33)
    count = (count + (count >> 4)) & 15
    return used[:, None] + tl.cumsum(count, axis=1) - count, used + tl.sum(count, axis=1)


def tiling(tokens: int, w: int) -> dict[str, int]:
    """Programs, and the constants of a kernel that walks over rows of w bytes: ROWS and BYTES of a tile, STEPS of them
    in a row."""
    columns = min(max(power_of_two(w), _NARROWEST), _WIDEST)
    rows = _TILE // columns
    return {"programs": triton.cdiv(tokens, rows), "ROWS": rows, "BYTES": columns, "STEPS": triton.cdiv(w, columns)}
