"""Bipartite soft matching by cosine similarity, in plain PyTorch: the other choice beside Hamming distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from btr_kernels import MergePlan, merge_tokens


def match_by_cosine(features: Tensor, keep: float, sizes: Tensor) -> MergePlan:
    """The plan of `btr_kernels.match_tokens` with the most similar pairs by cosine instead of by Hamming distance.

    features: float `(N, n, f)`. keep: share of each passage's tokens kept, in (0, 1]. sizes: int32 `(N, n)`, 0 for
    padding on the right. Source: Token Merging (Bolya et al. 2023, section 3). Reads no tensor's value, so that a GPU
    is not waited for: a round halves the tokens at most, and `keep` says how many rounds that takes.
    """
    lengths = (sizes > 0).sum(1)
    wanted = (lengths * keep).ceil().long()
    max_len = math.ceil(keep * features.shape[1])
    slot = torch.where(sizes > 0, torch.arange(features.shape[1], device=features.device), -1)
    of_round, counts = features, sizes
    for _ in range(max(1, math.ceil(-math.log2(keep)))):
        found, lengths = _match_once(of_round, lengths, wanted)
        # Padding stays padding: its slot of -1 reads the last column, which is then replaced.
        slot = torch.where(slot < 0, -1, found.gather(1, slot.clamp(min=0)))
        plan = MergePlan(found.int(), lengths.int(), of_round.shape[1])
        of_round, counts = merge_tokens(of_round, plan, counts)
    return MergePlan(slot.int(), lengths.int(), max_len)


def _match_once(features: Tensor, lengths: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """One round: slots int64 `(N, n)`, -1 for padding, and the numbers of tokens left `(N,)`."""
    n = features.shape[1]
    if n < 2:
        return torch.where(torch.arange(n, device=features.device) < lengths[:, None], 0, -1), lengths
    directions = torch.nn.functional.normalize(features.float(), dim=-1)
    column = torch.arange(n, device=features.device)
    valid = column < lengths[:, None]
    similarity = directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)
    similarity = similarity.masked_fill(~valid[:, None, 1::2], -torch.inf)
    best, partner = similarity.max(-1)
    best = best.masked_fill(~valid[:, ::2], -torch.inf)
    pairs = torch.minimum(lengths - wanted, (lengths + 1) // 2).clamp(min=0)
    # The place of every even token among all, the most similar first and equal ones in order.
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    merged = torch.zeros_like(valid)
    merged[:, ::2] = rank < pairs[:, None]
    left = valid & ~merged
    place = left.cumsum(1) - 1
    target = column.expand(valid.shape).clone()
    target[:, ::2] = torch.where(merged[:, ::2], 2 * partner + 1, column[::2])
    return torch.where(valid, place.gather(1, target), -1), left.sum(1)
