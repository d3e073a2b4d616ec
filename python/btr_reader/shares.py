"""How many passage tokens are kept, where and by which similarity: settings, and presets of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Preset = Literal["none", "paper", "aggressive"]
Similarity = Literal["hamming", "keys"]


@dataclass(frozen=True)
class Compression:
    """Shares of passage tokens kept, each in (0, 1]; 1 keeps all. Query tokens are never merged.

    Source: BTR (arXiv 2310.01329), offline and runtime compression; `keys` is Token Merging's similarity (Bolya et al.
    2023, section 3).
    """

    offline: float = 1.0
    """Of a passage, before it is stored."""
    joint: float | tuple[float, ...] = 1.0
    """In each joint encoder layer, of what came in; one share for all layers, or one for each."""
    decoder: float = 1.0
    """Of what the last encoder layer gives, before keys and values are projected for the decoder."""
    similarity: Similarity = "hamming"
    """What tokens are merged by while reading: Hamming distance of the signs of their states, or cosine of the keys."""

    def __post_init__(self) -> None:
        if isinstance(self.joint, list):
            object.__setattr__(self, "joint", tuple(self.joint))
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


def preset_with(preset: Preset, *, similarity: Similarity = "hamming", **shares: float | None) -> Compression:
    """A preset in which the shares that are not None replace its own.

    >>> preset_with("aggressive", joint=0.9, decoder=None)
    Compression(offline=0.5, joint=0.9, decoder=0.5, similarity='hamming')
    """
    given = {name: share for name, share in shares.items() if share is not None}
    return replace(PRESETS[preset], similarity=similarity, **given)
