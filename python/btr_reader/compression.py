"""Merging of similar passage tokens, offline and in the joint layers, and the presets of how many are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

import btr_kernels

from .cosine import match_by_cosine

Preset = Literal["none", "paper", "aggressive"]
Similarity = Literal["hamming", "keys"]


@dataclass(frozen=True)
class Compression:
    """Shares of passage tokens kept, each in (0, 1]; 1 keeps all. Query tokens are never merged.

    offline: of a passage, before it is stored. joint: in each joint encoder layer, of what came in; one share for all,
    or one for each layer. decoder: of what the last encoder layer gives, before keys and values are projected for the
    decoder. (BTR, offline and runtime compression.)

    similarity: what tokens are compared by in the joint layers and before the decoder: the Hamming distance of the
    signs of their states, or the cosine of the attention's keys (`keys`; Token Merging, Bolya et al. 2023, section 3).
    """

    offline: float = 1.0
    joint: float | tuple[float, ...] = 1.0
    decoder: float = 1.0
    similarity: Similarity = "hamming"

    def __post_init__(self) -> None:
        for name in ("offline", "decoder"):
            check_keep(name, getattr(self, name))
        for keep in self.joint if isinstance(self.joint, tuple) else (self.joint,):
            check_keep("joint", keep)
        if self.similarity not in get_args(Similarity):
            raise ValueError(f"similarity must be one of {', '.join(get_args(Similarity))}, got {self.similarity!r}")

    def of_layers(self, layers: int) -> tuple[float, ...]:
        """The shares of the joint layers. Raises `ValueError` where `joint` is for another number of them."""
        shares = self.joint if isinstance(self.joint, tuple) else (self.joint,) * layers
        if len(shares) != layers:
            raise ValueError(f"joint: expected one share or {layers}, one for each joint layer, got {len(shares)}")
        return shares


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
