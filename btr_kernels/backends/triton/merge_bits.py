"""Majority votes of the tokens of each row. Bound by reading bits, each token once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two
from .groups import vote
from .merging import sorted_tokens
from .passages import offsets

#: Bytes of bits that a program holds, each as 8 counts: with 4 warps, 32 counts a thread.
_TILE = 512


@triton.jit(do_not_specialize=["rows"])
def _merge_bits(
    bits, sizes, order, first, count, out, new_sizes, rows, w, column_programs,
    ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """out (rows, w) and new_sizes (rows,) of the tokens order[first : first + count] of each row."""
    program = tl.program_id(0).to(tl.int64)
    row = (program // column_programs) * ROWS + tl.arange(0, ROWS)
    column = program % column_programs
    byte = column * BYTES + tl.arange(0, BYTES)
    inside = row < rows
    begin = tl.load(first + row, mask=inside, other=0)
    number = tl.load(count + row, mask=inside, other=0)
    packed, votes = vote(bits, sizes, order, begin, number, inside, byte, w, ROWS, BYTES)
    tl.store(out + row[:, None] * w + byte[None, :], packed, mask=inside[:, None] & (byte < w)[None, :])
    if column == 0:
        tl.store(new_sizes + row, votes, mask=inside)


def merge_bits(
    bits: Tensor,
    slot: Tensor,
    sizes: Tensor | None,
    rows: int,
    cu_in: Tensor | None,
    cu_out: Tensor | None,
    out: Tensor,
    new_sizes: Tensor,
) -> None:
    if slot.numel() == 0 or out.numel() == 0:
        out.zero_()
        new_sizes.zero_()
        return
    bits, slot = bits.contiguous(), slot.contiguous()
    sizes = None if sizes is None else sizes.contiguous()
    cu_in, cu_out = offsets(cu_in, slot.numel()), offsets(cu_out, rows)
    w = bits.shape[-1]
    columns = min(power_of_two(w), _TILE)
    tile = _TILE // columns
    column_programs = triton.cdiv(w, columns)
    total_rows = new_sizes.numel()
    with on_device(bits):
        order, first, count = sorted_tokens(slot, rows, cu_in, cu_out)
        _merge_bits[(triton.cdiv(total_rows, tile) * column_programs,)](
            bits, sizes, order, first, count, out, new_sizes, total_rows, w, column_programs,
            ROWS=tile, BYTES=columns, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
