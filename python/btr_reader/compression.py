"""Merging of similar passage tokens, offline and in the joint layers."""

from __future__ import annotations

import torch
from torch import Tensor

import btr_kernels

from .cosine import match_by_cosine


def earliest_positions(slot: Tensor, positions: Tensor | None, width: int) -> Tensor:
    """The position of the earliest token of every slot.

    slot: int32 `(N, n)`, -1 for padding. positions: int `(N, n)`, None for 0..n-1. Returns int32 `(N, width)`; slots
    without a token have position 0. A merged token keeps its earliest token's place, as a majority tie keeps its bit.
    """
    rows, n = slot.shape
    if positions is None:
        positions = torch.arange(n, dtype=torch.int32, device=slot.device).expand(rows, n)
    # Padding goes to a column of its own that is dropped again.
    column = torch.where(slot < 0, width, slot).long()
    found = torch.full(
        (rows, width + 1), n_beyond := torch.iinfo(torch.int32).max, dtype=torch.int32, device=slot.device
    )
    found = found.scatter_reduce(1, column, positions.int(), "amin")[:, :width]
    return torch.where(found == n_beyond, 0, found)


def merge_passages(
    states: Tensor, sizes: Tensor, positions: Tensor, keep: float, features: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merges the most similar tokens of N passages until the share `keep` of each is left.

    states: float `(N, n, d)`. sizes: int32 `(N, n)`, padding (0) on the right. positions: int32 `(N, n)`. features:
    float `(N, n, f)`, whose cosine says how similar tokens are; without them it is the Hamming distance of the signs
    of the states. A merged token is the mean over the text's tokens. Returns the three for the tokens left, n reduced
    to ceil(keep * n), and the slot int32 `(N, n)` that every token went to, -1 for padding.
    """
    lengths = (sizes > 0).sum(1)
    if features is None:
        plan = btr_kernels.match_tokens(btr_kernels.pack_bits(states), float(keep), lengths)
    else:
        plan = match_by_cosine(features, keep, sizes)
    merged, merged_sizes = btr_kernels.merge_tokens(states, plan, sizes)
    return merged, merged_sizes, earliest_positions(plan.slot, positions, plan.max_len), plan.slot
