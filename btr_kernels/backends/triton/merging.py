"""Rows of a merge: for each row of the result, which tokens go to it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .groups import sort_block
from .passages import block_of, blocks, passage_range

#: Tokens that a program sorts, and others that they are compared with at a time.
_TOKENS, _OTHERS = 128, 16


@triton.jit
def row_range(passage, rows, cu_out):
    """First row of a passage's result and how many rows it has, int64."""
    if cu_out is not None:
        first = tl.load(cu_out + passage).to(tl.int64)
        room = tl.load(cu_out + passage + 1).to(tl.int64) - first
    else:
        first = passage.to(tl.int64) * rows
        room = first * 0 + rows
    return first, room


@triton.jit(do_not_specialize=["batch", "n_blocks"])
def _sort(
    slot, cu_in, cu_out, order, first, count, batch, n, rows, n_blocks,
    TOKENS: tl.constexpr, OTHERS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """order (total,): the tokens of each passage by row; first and count (total_rows,): a row's entries of it."""
    passage, block = block_of(tl.program_id(0).to(tl.int64), batch, n_blocks, cu_in, TOKENS, STEPS)
    start, length = passage_range(passage, n, None, cu_in)
    row, room = row_range(passage, rows, cu_out)
    if block * TOKENS < length:
        token = block.to(tl.int32) * TOKENS + tl.arange(0, TOKENS)
        sort_block(
            slot + start, order + start, first + row, count + row, token, length.to(tl.int32), room.to(tl.int32),
            start, OTHERS,
        )  # fmt: skip


def sorted_tokens(
    slot: Tensor, rows: int, cu_in: Tensor | None, cu_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """order, first and count of `_sort`, on the current device; slot is contiguous and not empty, offsets are as they
    should be (`passages.offsets`)."""
    packed = cu_in is not None
    total, n = slot.numel(), slot.shape[-1]
    batch = cu_in.numel() - 1 if packed else slot.shape[0]
    total_rows = rows if packed else batch * rows
    order = torch.empty_like(slot)
    first = slot.new_empty(total_rows)
    count = slot.new_zeros(total_rows)
    if batch:
        programs, each = blocks(batch, n, total, packed, _TOKENS)
        _sort[(programs,)](
            slot, cu_in, cu_out, order, first, count, batch, n, rows, each,
            TOKENS=_TOKENS, OTHERS=_OTHERS, STEPS=batch.bit_length(), num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
    return order, first, count
