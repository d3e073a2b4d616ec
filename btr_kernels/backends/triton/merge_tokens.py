"""Weighted means of the tokens of each row. Bound by reading x, each token once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two, rounded, widened
from .merging import sorted_tokens
from .passages import offsets

#: Sums that a program holds: with 4 warps, 16 a thread.
_TILE = 2048


@triton.jit(do_not_specialize=["rows"])
def _merge_tokens(
    x, sizes, order, first, count, out, new_sizes, rows, d, column_programs,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (rows, d) and new_sizes (rows,) of the tokens order[first : first + count] of each row, summed in order."""
    program = tl.program_id(0).to(tl.int64)
    row = (program // column_programs) * ROWS + tl.arange(0, ROWS)
    column = program % column_programs
    channel = column * CHANNELS + tl.arange(0, CHANNELS)
    inside = row < rows
    begin = tl.load(first + row, mask=inside, other=0)
    number = tl.load(count + row, mask=inside, other=0)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
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
    if column == 0:
        tl.store(new_sizes + row, votes, mask=inside)


def merge_tokens(
    x: Tensor,
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
    x, slot = x.contiguous(), slot.contiguous()
    sizes = None if sizes is None else sizes.contiguous()
    cu_in, cu_out = offsets(cu_in, slot.numel()), offsets(cu_out, rows)
    d = x.shape[-1]
    channels = min(power_of_two(d), _TILE)
    tile = _TILE // channels
    column_programs = triton.cdiv(d, channels)
    total_rows = new_sizes.numel()
    with on_device(x):
        order, first, count = sorted_tokens(slot, rows, cu_in, cu_out)
        _merge_tokens[(triton.cdiv(total_rows, tile) * column_programs,)](
            x, sizes, order, first, count, out, new_sizes, total_rows, d, column_programs,
            ROWS=tile, CHANNELS=channels, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
