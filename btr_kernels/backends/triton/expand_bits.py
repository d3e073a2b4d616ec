"""Packed bits of the stored ones and a table of the others. Bound by reading a row of both tables for each token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device
from .masked import stored_channels, tiling, tokens_of_program


@triton.jit(do_not_specialize=["tokens", "table_rows"])
def _expand_bits(
    codes, ids, mask, fill, out, tokens, table_rows, c, w,
    ROWS: tl.constexpr, BYTES: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """codes (tokens, c) -> out (tokens, w), contiguous; a program expands ROWS tokens, BYTES of each at a time."""
    token, row, used = tokens_of_program(ids, tokens, table_rows, ROWS)
    for step in range(STEPS):
        byte, inside, stored, place, used = stored_channels(mask, token, row, used, tokens, step, w, BYTES)
        other = tl.load(fill + row[:, None] * w + byte, mask=inside, other=0).to(tl.int32)
        first = place >> 3
        code = codes + token[:, None] * c + first
        low = tl.load(code, mask=inside & (first < c), other=0).to(tl.int32)
        high = tl.load(code + 1, mask=inside & (first + 1 < c), other=0).to(tl.int32)
        bits = (low | (high << 8)) >> (place & 7)
        value = other & ~stored
        for channel in tl.static_range(8):
            one = (stored >> channel) & 1
            value |= (bits & one) << channel
            bits >>= one
        tl.store(out + token[:, None] * w + byte, value.to(tl.uint8), mask=inside)


def expand_bits(codes: Tensor, ids: Tensor, mask: Tensor, fill: Tensor, out: Tensor) -> None:
    if out.numel() == 0:
        return
    codes, ids, mask, fill = codes.contiguous(), ids.contiguous(), mask.contiguous(), fill.contiguous()
    c, w, tokens = codes.shape[-1], out.shape[-1], ids.numel()
    constants = tiling(tokens, w)
    with on_device(codes):
        _expand_bits[(constants.pop("programs"),)](
            codes, ids, mask, fill, out, tokens, mask.shape[0], c, w, **constants, num_warps=4, enable_fp_fusion=False
        )
