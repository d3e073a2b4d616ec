"""Merging of similar tokens of a passage before it is stored."""

from __future__ import annotations

import torch
from torch import Tensor

import btr_kernels


def match_equal_ids(bits: Tensor, ids: Tensor, lengths: Tensor, keep: Tensor) -> btr_kernels.MergePlan:
    """Merges tokens of a passage that have the same vocabulary id, down to `keep` tokens or until no two are left.

    bits: uint8 `(B, n, w)`. ids: int64 `(B, n)`. lengths, keep: int `(B,)`. The pairs are taken by Hamming distance,
    the least first (ties to the earliest pair); a pair joins the groups that its tokens are in by then. A group stands
    where its earliest token stood. Slots as in `btr_kernels.match_tokens`.
    """
    n = bits.shape[1]
    position = torch.arange(n)
    valid = position < lengths[:, None]
    equal = (ids[:, :, None] == ids[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    passage, first, second = equal.triu(1).nonzero(as_tuple=True)
    distance = btr_kernels.hamming_distance(bits, bits)[passage, first, second]
    order = distance.argsort(stable=True)
    # The earliest token of the group that each token is in, found by walking up.
    parents = [list(range(n)) for _ in range(len(bits))]
    surplus = (lengths - keep).tolist()
    for row, a, b in zip(passage[order].tolist(), first[order].tolist(), second[order].tolist(), strict=True):
        if surplus[row] <= 0:
            continue
        parent = parents[row]
        while parent[a] != a:
            a = parent[a]
        while parent[b] != b:
            b = parent[b]
        if a != b:
            parent[max(a, b)] = min(a, b)
            surplus[row] -= 1
    for parent in parents:
        for token in range(n):
            parent[token] = parent[parent[token]]  # one that comes earlier, and is resolved already
    earliest = torch.tensor(parents).reshape(len(bits), n)
    stays = (earliest == position) & valid
    slot = (stays.cumsum(1) - 1).gather(1, earliest)
    return btr_kernels.MergePlan(torch.where(valid, slot, -1).int(), stays.sum(1).int(), n)


def offline_plan(bits: Tensor, ids: Tensor, lengths: Tensor, keep: float, same_id_first: bool) -> btr_kernels.MergePlan:
    """Which tokens of a passage are merged before it is stored, so that the share `keep` is left.

    bits: uint8 `(B, n, w)`. ids: int64 `(B, n)`. lengths: int `(B,)`. same_id_first: tokens of one vocabulary id are
    merged first (`match_equal_ids`), and the others, by bipartite matching of what that leaves, only if it is not
    enough: at the same share fewer bits flip.
    """
    if not same_id_first:
        return btr_kernels.match_tokens(bits, keep, lengths)
    wanted = (lengths.double() * keep).ceil().long().clamp(min=1)
    by_id = match_equal_ids(bits, ids, lengths, wanted)
    grouped, _ = btr_kernels.merge_bits(bits, by_id)
    rest = btr_kernels.match_tokens(grouped, wanted, by_id.lengths)
    slot = torch.where(by_id.slot < 0, -1, rest.slot.gather(1, by_id.slot.clamp(min=0).long()))
    return btr_kernels.MergePlan(slot, rest.lengths, int(rest.lengths.max()))
