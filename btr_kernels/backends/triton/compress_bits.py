"""The bits of the channels in each token's mask. Bound by reading bits and a row of the table for each token, where the
codes of a program's tokens stay in cache: bytes of a token add their bits to words of its code, in any order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import on_device
from .masked import stored_channels, tiling, tokens_of_program


@triton.jit(do_not_specialize=["tokens", "table_rows", "k"])
def _compress_bits(
    bits, ids, mask, words, tokens, table_rows, k, w, words_each,
    ROWS: tl.constexpr, BYTES: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """bits (tokens, w) -> words (tokens, words_each) int32, which are 0 before; a program does ROWS tokens, BYTES of
    each at a time."""
    token, row, used = tokens_of_program(ids, tokens, table_rows, ROWS)
    for step in range(STEPS):
        byte, inside, stored, place, used = stored_channels(mask, token, row, used, tokens, step, w, BYTES)
        value = tl.load(bits + token[:, None] * w + byte, mask=inside, other=0).to(tl.int32)
        taken = value * 0
        count = value * 0
        for channel in tl.static_range(8):
            one = (stored >> channel) & 1
            taken |= ((value >> channel) & one) << count
            count += one
        taken &= (1 << tl.minimum(tl.maximum(k - place, 0), 8)) - 1  # bits past the k-th are left out
        shifted = taken.to(tl.int64) << (place & 31)
        low = shifted.to(tl.int32)
        high = (shifted >> 32).to(tl.int32)
        word = words + token[:, None] * words_each + (place >> 5)
        tl.atomic_or(word, low, mask=low != 0, sem="relaxed")
        tl.atomic_or(word + 1, high, mask=high != 0, sem="relaxed")


def compress_bits(bits: Tensor, ids: Tensor, mask: Tensor, k: int, out: Tensor) -> None:
    if out.numel() == 0:
        return
    bits, ids, mask = bits.contiguous(), ids.contiguous(), mask.contiguous()
    w, tokens = bits.shape[-1], ids.numel()
    words = torch.zeros(*out.shape[:-1], triton.cdiv(k, 32), dtype=torch.int32, device=out.device)
    constants = tiling(tokens, w)
    with on_device(bits):
        _compress_bits[(constants.pop("programs"),)](
            bits, ids, mask, words, tokens, mask.shape[0], k, w, words.shape[-1],
            **constants, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        out.copy_(words.view(torch.uint8)[..., : out.shape[-1]])
