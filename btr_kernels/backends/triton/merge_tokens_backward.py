"""Each token's share of the gradient of the row it went to. Bound by writing the gradient."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two, rounded, widened
from .merging import row_range
from .passages import block_of, blocks, offsets, passage_range

#: Values that a program holds: with 4 warps, 32 a thread.
_TILE = 4096
#: Channels that it does of a token.
_WIDEST = 1024


@triton.jit(do_not_specialize=["batch", "n_blocks"])
def _merge_tokens_backward(
    grad, slot, sizes, new_sizes, cu_in, cu_out, grad_x, batch, n, rows, d, n_blocks,
    column_programs, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """grad (total_rows, d) -> grad_x (total, d)."""
    program = tl.program_id(0).to(tl.int64)
    channel = (program % column_programs) * CHANNELS + tl.arange(0, CHANNELS)
    passage, block = block_of(program // column_programs, batch, n_blocks, cu_in, TOKENS, STEPS)
    start, length = passage_range(passage, n, None, cu_in)
    first, room = row_range(passage, rows, cu_out)
    position = block * TOKENS + tl.arange(0, TOKENS)
    inside = position < length
    token = start + position
    mine = tl.load(slot + token, mask=inside, other=-1)
    goes = inside & (mine >= 0) & (mine < room)
    size = goes.to(tl.int32)
    if sizes is not None:
        size = tl.load(sizes + token, mask=goes, other=0)
    whole = tl.load(new_sizes + first + mine, mask=goes, other=1)
    share = size.to(tl.float32) / tl.maximum(whole, 1).to(tl.float32)
    mask = goes[:, None] & (channel < d)[None, :]
    value = widened(tl.load(grad + (first + mine)[:, None] * d + channel[None, :], mask=mask, other=0))
    result = rounded(value * share[:, None], grad_x.dtype.element_ty)
    tl.store(grad_x + token[:, None] * d + channel[None, :], result, mask=inside[:, None] & (channel < d)[None, :])


def merge_tokens_backward(
    grad: Tensor,
    slot: Tensor,
    sizes: Tensor | None,
    new_sizes: Tensor,
    cu_in: Tensor | None,
    cu_out: Tensor | None,
    grad_x: Tensor,
) -> None:
    if grad_x.numel() == 0:
        return
    grad, slot, new_sizes = grad.contiguous(), slot.contiguous(), new_sizes.contiguous()
    sizes = None if sizes is None else sizes.contiguous()
    packed = cu_in is not None
    total, n, d = slot.numel(), slot.shape[-1], grad.shape[-1]
    rows = grad.shape[-2]
    cu_in, cu_out = offsets(cu_in, total), offsets(cu_out, rows)
    batch = cu_in.numel() - 1 if packed else slot.shape[0]
    channels = min(power_of_two(d), _WIDEST)
    tokens = _TILE // channels
    column_programs = triton.cdiv(d, channels)
    programs, each = blocks(batch, n, total, packed, tokens)
    with on_device(grad):
        _merge_tokens_backward[(programs * column_programs,)](
            grad, slot, sizes, new_sizes, cu_in, cu_out, grad_x, batch, n, rows, d, each,
            column_programs, TOKENS=tokens, CHANNELS=channels, STEPS=batch.bit_length(), num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
