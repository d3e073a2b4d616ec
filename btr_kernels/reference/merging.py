"""Definition of bipartite token matching, majority merging of bits and weighted merging of floats.

Padded passages (B, n, ...) and packed ones (total, ...) with `cu_seqlens` (B+1,) share one definition: packed
input is spread into rows of a padded tensor, or given row numbers, and nothing else differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import pack_bits, signs
from .hamming import hamming_distance


def _passage_and_position(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For each of `total` packed tokens the passage it belongs to and its position there, both int64 (total,)."""
    row = torch.arange(total, device=cu_seqlens.device)
    passage = torch.searchsorted(cu_seqlens[1:].long(), row, right=True)
    return passage, row - cu_seqlens.long()[passage]


def match_tokens(
    bits: Tensor, keep: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Slots (int32, shape of the tokens, -1 for padding) and new lengths (int32 (B,)): `btr_kernels.match_tokens`."""
    if cu_seqlens is not None:
        total, lengths = bits.shape[0], cu_seqlens.diff()
        passage, position = _passage_and_position(cu_seqlens, total)
        padded = bits.new_zeros(len(lengths), int(lengths.max()) if len(lengths) else 0, bits.shape[-1])
        padded[passage, position] = bits
        slot, new_lengths = match_tokens(padded, keep, lengths, None)
        return slot[passage, position], new_lengths

    batch, n, _ = bits.shape
    position = torch.arange(n, device=bits.device)
    length = torch.full((batch,), n, device=bits.device) if lengths is None else lengths.long()
    target = torch.minimum(keep.long().clamp(min=1), length)
    slot = torch.where(position < length[:, None], position, -1)
    tokens = bits
    while bool((length > target).any()):
        a, b, m = tokens[:, 0::2], tokens[:, 1::2], tokens.shape[1]
        a_valid = torch.arange(0, m, 2, device=bits.device) < length[:, None]
        b_valid = torch.arange(1, m, 2, device=bits.device) < length[:, None]
        far = 8 * bits.shape[-1] + 1
        distance = hamming_distance(a, b).masked_fill(~b_valid[:, None, :], far)
        # One key per pair, so that the least distance and then the lowest b win, whatever argmin does with ties.
        width = b.shape[1]
        key = distance.long() * width + torch.arange(width, device=bits.device)
        key = key.amin(-1).masked_fill(~a_valid, (far + 1) * width)
        distance, best = key // width, key % width
        # Stable sort: equal distances stay in the order of a.
        rank = distance.sort(dim=-1, stable=True).indices.argsort(dim=-1)
        merges = torch.minimum(length - target, (length + 1) // 2).clamp(min=0)
        merged = (rank < merges[:, None]) & a_valid

        stays = torch.arange(m, device=bits.device) < length[:, None]
        stays[:, 0::2] &= ~merged
        new_position = stays.cumsum(-1) - 1
        moved_to = new_position.gather(1, 2 * best.clamp(max=width - 1) + 1)
        new_position[:, 0::2] = torch.where(merged, moved_to, new_position[:, 0::2])
        slot = torch.where(slot >= 0, new_position.gather(1, slot.clamp(min=0)), -1)
        length = length - merges
        tokens, _ = merge_bits(bits, slot.int(), None, int(length.max()), None, None)
    return slot.int(), length.int()


def _rows(slot: Tensor, rows: int, cu_in: Tensor | None, cu_out: Tensor | None) -> tuple[Tensor, int]:
    """Row of the flattened result for every token, int64, with one spare last row for tokens without a slot."""
    if cu_in is None:
        batch = slot.shape[0]
        base, count = torch.arange(batch, device=slot.device)[:, None] * rows, batch * rows
    else:
        passage, _ = _passage_and_position(cu_in, slot.shape[0])
        base, count = cu_out.long()[passage], rows
    return torch.where(slot >= 0, slot.long() + base, count).flatten(), count


def _token_sizes(slot: Tensor, sizes: Tensor | None) -> Tensor:
    """How many original tokens each token stands for, int32, flattened: 1 unless sizes says otherwise."""
    return torch.ones_like(slot).flatten() if sizes is None else sizes.flatten()


def merge_bits(
    bits: Tensor, slot: Tensor, sizes: Tensor | None, rows: int, cu_in: Tensor | None, cu_out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Per slot and channel the bit that most votes have, a tie taking the bit of the slot's earliest token."""
    shape = (rows,) if cu_in is not None else (slot.shape[0], rows)
    d = 8 * bits.shape[-1]
    row, count = _rows(slot, rows, cu_in, cu_out)
    size = _token_sizes(slot, sizes)
    vote = signs(bits, d, torch.int32).flatten(0, -2)
    votes = vote.new_zeros(count + 1, d).index_add_(0, row, vote * size[:, None])
    new_sizes = size.new_zeros(count + 1).index_add_(0, row, size)

    token = torch.arange(row.numel(), device=bits.device)
    earliest = token.new_full((count + 1,), max(row.numel() - 1, 0)).scatter_reduce_(0, row, token, "amin")
    tie_break = vote[earliest] if row.numel() else votes
    filled = (new_sizes > 0)[:, None]
    ones = ((votes > 0) | ((votes == 0) & (tie_break > 0))) & filled
    return pack_bits(ones[:count]).reshape(*shape, bits.shape[-1]), new_sizes[:count].reshape(shape)


def merge_tokens(
    x: Tensor, slot: Tensor, sizes: Tensor | None, rows: int, cu_in: Tensor | None, cu_out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Per slot the mean of its tokens weighted by their sizes, summed in float32; empty slots are 0."""
    shape = (rows,) if cu_in is not None else (slot.shape[0], rows)
    d = x.shape[-1]
    row, count = _rows(slot, rows, cu_in, cu_out)
    size = _token_sizes(slot, sizes)
    weighted = x.reshape(-1, d).float() * size[:, None]
    total = weighted.new_zeros(count + 1, d).index_add_(0, row, weighted)[:count]
    new_sizes = size.new_zeros(count + 1).index_add_(0, row, size)[:count]
    mean = total / new_sizes.clamp(min=1)[:, None]
    return mean.to(x.dtype).reshape(*shape, d), new_sizes.reshape(shape)


def merge_tokens_backward(
    grad: Tensor,
    slot: Tensor,
    sizes: Tensor | None,
    new_sizes: Tensor,
    cu_in: Tensor | None,
    cu_out: Tensor | None,
) -> Tensor:
    """Gradient of `merge_tokens` in x: the gradient of the row a token went to, times its share of that row."""
    rows, d = grad.shape[-2:]
    row, _ = _rows(slot, rows, cu_in, cu_out)
    taken = torch.cat([grad.reshape(-1, d).float(), grad.new_zeros(1, d, dtype=torch.float32)])[row]
    total = torch.cat([new_sizes.flatten(), new_sizes.new_ones(1)])[row]
    share = _token_sizes(slot, sizes) / total.clamp(min=1)
    return (taken * share[:, None]).to(grad.dtype).reshape(*slot.shape, d)
