"""How a store keeps bits in less space than one each."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from .codebook import Codebook
from .manifest import Manifest
from .tables import load_tables


class BitCode(Protocol):
    """How a store keeps bits in less space, given the vocabulary id of every token (`tables`, `codebook`)."""

    def compress(self, bits: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Bits uint8 `(m, w)` of tokens with these ids, int64 `(m,)` -> what is stored of each, `(m, ...)`."""
        ...

    def restore(self, rows: np.ndarray, ids: np.ndarray, where: str) -> np.ndarray:
        """The reverse; `ValueError` naming `where` for rows that cannot be."""
        ...

    def check_rows(self, rows: np.ndarray, ids: np.ndarray, where: str) -> None:
        """`ValueError` naming `where` for rows that `compress` cannot have given."""
        ...


def load_code(directory: Path, manifest: Manifest) -> BitCode | None:
    """The tables or the codebook of a store, mapped from disk; None for one without."""
    settings = manifest.settings
    if manifest.tables is not None:
        path = manifest.tables.check_size(directory)
        return load_tables(path, settings.vocabulary, settings.channels, settings.masked_bits)
    if manifest.codebook is not None:
        return Codebook(directory, manifest.codebook.files, settings.vocabulary, settings.channels)
    return None
