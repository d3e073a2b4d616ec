"""Merging: which tokens go to each row of the result, and the walk over rows that votes and means share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two
from .groups import sort_block
from .passages import block_of, blocks, offsets, passage_range

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


@triton.jit
def rows_of(first, count, rows, column_programs, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What a program of `merge` does: its rows (ROWS,), which of them exist, where their tokens begin in `order` and
    how many they are; the columns (COLUMNS,) of the tokens that it takes, and whether they are the first."""
    program = tl.program_id(0).to(tl.int64)
    row = (program // column_programs) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    begin = tl.load(first + row, mask=inside, other=0)
    number = tl.load(count + row, mask=inside, other=0)
    block = program % column_programs
    return row, inside, begin, number, block * COLUMNS + tl.arange(0, COLUMNS), block == 0


def merge(
    kernel: triton.JITFunction,
    tile: int,
    tokens: Tensor,
    slot: Tensor,
    sizes: Tensor | None,
    rows: int,
    cu_in: Tensor | None,
    cu_out: Tensor | None,
    out: Tensor,
    new_sizes: Tensor,
) -> None:
    """Run a kernel on all rows of out (rows, width) and new_sizes (rows,), `tile` elements of out a program:
    kernel(tokens, sizes, order, first, count, out, new_sizes, rows, width, column_programs, ROWS, COLUMNS)."""
    if slot.numel() == 0 or out.numel() == 0:
        out.zero_()
        new_sizes.zero_()
        return
    tokens, slot = tokens.contiguous(), slot.contiguous()
    sizes = None if sizes is None else sizes.contiguous()
    cu_in, cu_out = offsets(cu_in, slot.numel()), offsets(cu_out, rows)
    width = tokens.shape[-1]
    columns = min(power_of_two(width), tile)
    column_programs = triton.cdiv(width, columns)
    total_rows = new_sizes.numel()
    with on_device(tokens):
        order, first, count = sorted_tokens(slot, rows, cu_in, cu_out)
        kernel[(triton.cdiv(total_rows, tile // columns) * column_programs,)](
            tokens, sizes, order, first, count, out, new_sizes, total_rows, width, column_programs,
            ROWS=tile // columns, COLUMNS=columns, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
