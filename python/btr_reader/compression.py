"""Merging of similar passage tokens, offline and in the joint layers, and the presets of how many are kept."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

import btr_kernels

Preset = Literal["none", "paper", "aggressive"]


@dataclass(frozen=True)
class Compression:
    """Shares of passage tokens kept, each in (0, 1]; 1 keeps all. Query tokens are never merged.

    offline: of a passage, before it is stored. joint: in each joint encoder layer, of what came in. decoder: of what
    the last encoder layer gives, before keys and values are projected for the decoder. (BTR, offline and
    runtime compression.)
    """

    offline: float = 1.0
    joint: float = 1.0
    decoder: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_keep(field.name, getattr(self, field.name))


def check_keep(name: str, keep: float) -> None:
    """Raises `ValueError` unless `keep` is a number in (0, 1]."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise ValueError(f"{name}: the share of tokens to keep must be in (0, 1], got {keep!r}")


# `aggressive` is the benchmark's default. `paper` has the paper's three mechanisms at milder shares. The shares are our
# choice: those behind the paper's figures are not known to us.
PRESETS: dict[str, Compression] = {
    "none": Compression(),
    "paper": Compression(offline=0.7, joint=0.9, decoder=0.7),
    "aggressive": Compression(offline=0.5, joint=0.8, decoder=0.5),
}


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


def merge_passages(states: Tensor, sizes: Tensor, positions: Tensor, keep: float) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the most similar tokens of N passages until the share `keep` of each is left.

    states: float `(N, n, d)`. sizes: int32 `(N, n)`, padding (0) on the right. positions: int32 `(N, n)`.
    Similarity is the Hamming distance of the states' signs; a merged token is the mean over the text's tokens.
    Returns the three for the tokens left, n reduced to ceil(keep * n).
    """
    lengths = (sizes > 0).sum(1)
    plan = btr_kernels.match_tokens(btr_kernels.pack_bits(states), float(keep), lengths)
    merged, merged_sizes = btr_kernels.merge_tokens(states, plan, sizes)
    return merged, merged_sizes, earliest_positions(plan.slot, positions, plan.max_len)
