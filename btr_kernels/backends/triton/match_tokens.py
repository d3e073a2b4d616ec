"""Bipartite matching of each passage's tokens. Bound by the tensor cores' distances; distances never reach memory.

Two launches and no host sync, whatever `keep` holds: the first compares the tokens of all passages, with as many
programs as there are blocks of tokens; in the second a program finishes one passage, further rounds (few kept
tokens) included.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import on_device
from .expand import as_words, masks
from .groups import sort_block, vote
from .nearest import nearest
from .passages import block_of, blocks, offsets, passage_range

#: On Hopper GPUs tiles of 64 and more read the expanded columns from shared memory, smaller ones from registers.
_TILES = {
    90: (
        {"A": 32, "B": 64, "BITS": 128, "num_warps": 4, "num_stages": 2},
        {"A": 64, "B": 64, "BITS": 128, "num_warps": 4, "num_stages": 2},
        {"A": 64, "B": 64, "BITS": 256, "num_warps": 2, "num_stages": 2},
        {"A": 128, "B": 128, "BITS": 128, "num_warps": 8, "num_stages": 2},
    ),
    80: (
        {"A": 64, "B": 64, "BITS": 128, "num_warps": 4, "num_stages": 2},
        {"A": 64, "B": 128, "BITS": 128, "num_warps": 4, "num_stages": 2},
        {"A": 32, "B": 64, "BITS": 256, "num_warps": 4, "num_stages": 2},
        {"A": 128, "B": 128, "BITS": 128, "num_warps": 8, "num_stages": 2},
    ),
    0: ({"A": 64, "B": 64, "BITS": 1024, "num_warps": 4, "num_stages": 1},),
}
#: Bits of a token that a step of its distances takes.
_BITS = 64
#: What the program of a passage works on at a time: tokens, others that they are compared with, rows and bytes of a
#: vote.
_TOKENS, _OTHERS, _ROWS, _BYTES = 128, 16, 16, 32


@triton.jit(do_not_specialize=["batch", "n_blocks"])
def _nearest(
    tokens, lengths, cu_seqlens, table, distance, best, batch, n, n_blocks,
    W: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr, A: tl.constexpr, B: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The nearest partner of A tokens at even positions of a passage, at the passage's place in distance and best."""
    passage, block = block_of(tl.program_id(0).to(tl.int64), batch, n_blocks, cu_seqlens, 2 * A, STEPS)
    start, length = passage_range(passage, n, lengths, cu_seqlens)
    a = block.to(tl.int32) * A + tl.arange(0, A)
    m = length.to(tl.int32)
    if block * 2 * A < length:
        mask_table = tl.load(table + tl.arange(0, WIDTH))
        found, where = nearest(tokens + start * W, m, a, mask_table, W, WIDTH, WORDS, B)
        tl.store(distance + start + a, found, mask=2 * a < m)
        tl.store(best + start + a, where, mask=2 * a < m)


@triton.jit
def _select(distance, best, merged_before, slot, m, merges, length, TOKENS: tl.constexpr, OTHERS: tl.constexpr):
    """Merge the `merges` nearest pairs of a passage of m current tokens; slot (length,) holds current positions."""
    pairs = (m + 1) // 2
    carry = 0
    for first in range(0, pairs, TOKENS):
        a = first + tl.arange(0, TOKENS)
        mine = tl.load(distance + a, mask=a < pairs, other=0)
        closer = tl.zeros((OTHERS, TOKENS), tl.int32)
        for other_first in range(0, pairs, OTHERS):
            other = other_first + tl.arange(0, OTHERS)[:, None]
            theirs = tl.load(distance + other, mask=other < pairs, other=2147483647)
            less = theirs < mine[None, :]
            tied = (theirs == mine[None, :]) & (other < a[None, :])
            closer += (less | tied).to(tl.int32)
        rank = tl.sum(closer, axis=0)
        merged = ((rank < merges) & (a < pairs)).to(tl.int32)
        before = carry + tl.cumsum(merged, axis=0) - merged
        # The lowest bit says whether this one merges, the others how many before it do.
        tl.store(merged_before + a, 2 * before + merged, mask=a < pairs)
        carry += tl.sum(merged, axis=0)
    tl.debug_barrier()  # what follows reads what other threads have written
    for first in range(0, length, TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = token < length
        position = tl.load(slot + token, mask=inside, other=0)
        pair = position // 2
        mine = tl.load(merged_before + pair, mask=inside, other=0)
        goes = (position % 2 == 0) & (mine % 2 == 1)
        partner = tl.load(best + pair, mask=inside & goes, other=0)
        theirs = tl.load(merged_before + partner, mask=inside & goes, other=0)
        # Before an odd position stands its own pair's even one too.
        odd = position % 2
        stays = position - mine // 2 - odd * (mine % 2)
        moves = 2 * partner + 1 - theirs // 2 - theirs % 2
        tl.store(slot + token, tl.where(goes, moves, stays), mask=inside)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["n"])
def _finish(
    tokens, bits, lengths, keep, cu_seqlens, table, distance, best, merged_before, order, first, count, voted,
    voted_words, slot, new_lengths, n, w,
    W: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr, TOKENS: tl.constexpr,
    OTHERS: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """All rounds of a passage, the distances of the first one given; scratch rows are the passage's own."""
    passage = tl.program_id(0)
    start, length64 = passage_range(passage, n, lengths, cu_seqlens)
    length = length64.to(tl.int32)
    target = tl.minimum(tl.maximum(tl.load(keep + passage).to(tl.int64), 1), length64).to(tl.int32)
    slot += start
    distance += start
    best += start
    merged_before += start
    order += start
    first += start
    count += start
    room = length
    if cu_seqlens is None:
        room = n.to(tl.int32)
    for i in range(0, room, TOKENS):
        token = i + tl.arange(0, TOKENS)
        tl.store(slot + token, tl.where(token < length, token, -1), mask=token < room)
    tl.debug_barrier()

    m = length
    if m > target:
        merges = tl.minimum(m - target, (m + 1) // 2)
        _select(distance, best, merged_before, slot, m, merges, length, TOKENS, OTHERS)
        m -= merges
    if m > target:
        mask_table = tl.load(table + tl.arange(0, WIDTH))
        while m > target:
            # Majorities of the original tokens, then distances between them.
            for i in range(0, length, TOKENS):
                sort_block(slot, order, first, count, i + tl.arange(0, TOKENS), length, m, 0, OTHERS)
            tl.debug_barrier()
            for i in range(0, m, ROWS):
                row = i + tl.arange(0, ROWS)
                begin = tl.load(first + row, mask=row < m, other=0)
                number = tl.load(count + row, mask=row < m, other=0)
                for j in range(0, w, BYTES):
                    byte = j + tl.arange(0, BYTES)
                    packed, _ = vote(bits + start * w, None, order, begin, number, row < m, byte, w, ROWS, BYTES)
                    place = voted + (start + row)[:, None] * w + byte[None, :]
                    tl.store(place, packed, mask=(row < m)[:, None] & (byte < w)[None, :])
            tl.debug_barrier()
            for i in range(0, (m + 1) // 2, A):
                a = i + tl.arange(0, A)
                found, where = nearest(voted_words + start * W, m, a, mask_table, W, WIDTH, WORDS, A)
                tl.store(distance + a, found, mask=2 * a < m)
                tl.store(best + a, where, mask=2 * a < m)
            tl.debug_barrier()
            merges = tl.minimum(m - target, (m + 1) // 2)
            _select(distance, best, merged_before, slot, m, merges, length, TOKENS, OTHERS)
            m -= merges
    tl.store(new_lengths + passage, m)


def match_tokens(
    bits: Tensor, keep: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None, slot: Tensor, new_lengths: Tensor
) -> None:
    batch, packed = new_lengths.numel(), cu_seqlens is not None
    if batch == 0 or slot.numel() == 0:
        new_lengths.zero_()
        return
    bits, keep = bits.contiguous(), keep.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    total, n, w = slot.numel(), bits.shape[-2], bits.shape[-1]
    cu_seqlens = offsets(cu_seqlens, total)
    words = as_words(bits)
    width = 8 * words.element_size()
    scratch = slot.new_empty((6, total))
    distance, best, merged_before, order, first, count = scratch
    voted = torch.empty((total, w), dtype=torch.uint8, device=bits.device)
    common = {"W": words.shape[1], "WIDTH": width}
    with on_device(bits):
        table = masks(bits.device)

        def launch(A: int, B: int, BITS: int, num_warps: int, num_stages: int) -> None:
            programs, each = blocks(batch, n, total, packed, 2 * A)
            _nearest[(programs,)](
                words, lengths, cu_seqlens, table, distance, best, batch, n, each,
                **common, WORDS=BITS // width, A=A, B=B, STEPS=batch.bit_length(),
                num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False,
            )  # fmt: skip

        configs = tuning.for_device(_TILES, bits.device)
        key = (batch.bit_length(), n.bit_length(), w, packed)
        tuning.run("match_tokens", configs, key, launch, bits.device)
        _finish[(batch,)](
            words, bits, lengths, keep, cu_seqlens, table, distance, best, merged_before, order, first, count, voted,
            voted.view(words.dtype), slot, new_lengths, n, w,
            **common, WORDS=_BITS // width, TOKENS=_TOKENS, OTHERS=_OTHERS, ROWS=_ROWS, BYTES=_BYTES,
            A=32, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
