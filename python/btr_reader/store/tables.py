"""Masked bits: of every vocabulary id the bits that it foretells best are not stored, but filled in from its table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save as serialise

import btr_kernels

from ..files import check_tensor, map_tensors

TABLES_FILE = "tables.safetensors"


@dataclass(frozen=True, eq=False)
class TokenTables:
    """Which bits are stored and what the others are, for each of V vocabulary ids.

    mask: uint8 `(V, w)`, 1 for the channels whose bits are stored, `stored_bits` in each row. majority: uint8 `(V, w)`,
    the bit of every channel that most tokens of the id have. Pad bits are 0.
    """

    mask: np.ndarray
    majority: np.ndarray
    stored_bits: int

    def compress(self, bits: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Bits uint8 `(m, w)` of tokens with these ids `(m,)` -> codes uint8 `(m, ceil(stored_bits / 8))`."""
        tensors = (torch.from_numpy(values) for values in (bits, ids.astype(np.int32), self.mask))
        return btr_kernels.compress_bits(*tensors, self.stored_bits).numpy()

    def restore(self, codes: np.ndarray, ids: np.ndarray, where: str) -> np.ndarray:
        """The reverse: bits uint8 `(m, w)`, the masked ones those of the majority. ids must be below V."""
        tensors = (torch.from_numpy(values) for values in (codes, ids.astype(np.int32), self.mask, self.majority))
        return btr_kernels.expand_bits(*tensors).numpy()

    def check_rows(self, codes: np.ndarray, ids: np.ndarray, where: str) -> None:
        """`ValueError` naming `where` for codes with pad bits."""
        pad = -self.stored_bits % 8
        if pad and (codes[:, -1] >> (8 - pad)).any():
            raise ValueError(f"{where}: damaged file: bits beyond the {self.stored_bits} of a code are set")

    def serialise(self) -> bytes:
        """The content of a tables file."""
        return serialise({"mask": self.mask, "majority": self.majority})


def load_tables(path: Path, vocabulary: int, channels: int, stored_bits: int) -> TokenTables:
    """Tables mapped from a file; `ValueError` naming it unless they have this shape and number of bits."""
    tensors = map_tensors(path)
    for name in ("mask", "majority"):
        check_tensor(path, tensors, name, np.uint8, (vocabulary, -(-channels // 8)))
    mask, majority = torch.from_numpy(tensors["mask"]), torch.from_numpy(tensors["majority"])
    if bool((set_bits(mask) != stored_bits).any()):
        raise ValueError(f"{path}: damaged file: each mask must have {stored_bits} bits")
    if pad_bits_set(mask, channels) or pad_bits_set(majority, channels):
        raise ValueError(f"{path}: damaged file: pad bits beyond channel {channels} are set")
    return TokenTables(tensors["mask"], tensors["majority"], stored_bits)


def set_bits(bits: torch.Tensor) -> torch.Tensor:
    """How many bits are set in each row of uint8 `(n, w)`, int32 `(n, 1)`."""
    return btr_kernels.hamming_distance(bits, torch.zeros_like(bits[:1]))


def pad_bits_set(bits: torch.Tensor, channels: int) -> bool:
    """Whether a row of uint8 `(n, w)` has bits beyond its channels."""
    pad = -channels % 8
    return pad > 0 and bool((bits[:, -1] >> (8 - pad)).any())
