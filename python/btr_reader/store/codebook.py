"""The codebook: vectors that tokens of one vocabulary id share across the corpus, and their use.

A codebook file, one or several in a store, holds consecutive vocabulary ids, the first file from id 0:

    counts     int32 (ids,): vectors of each id
    vectors    uint8 (sum of counts, w): those of the first id, those of the second, ...

A kept token is stored as the number of its vector among those of its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import btr_kernels

from ..files import StoredFile, check_tensor, map_tensors


def read_part(path: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """counts int32 `(ids,)` and vectors uint8 `(n, w)` of a codebook file, checked and mapped from disk."""
    tensors = map_tensors(path)
    counts = tensors.get("counts")
    check_tensor(path, tensors, "counts", np.int32, (0 if counts is None else counts.size,))
    if counts.min(initial=0) < 0:
        raise ValueError(f"{path}: damaged file: counts must not be negative")
    check_tensor(path, tensors, "vectors", np.uint8, (int(counts.sum(dtype=np.int64)), width))
    return counts, tensors["vectors"]


class Codebook:
    """The vectors of all vocabulary ids, mapped from the files of a store."""

    def __init__(self, directory: Path, files: Sequence[StoredFile], vocabulary: int, channels: int):
        parts = [read_part(entry.check_size(directory), -(-channels // 8)) for entry in files]
        self._counts = np.concatenate([counts for counts, _ in parts]).astype(np.int64)
        if len(self._counts) != vocabulary:
            raise ValueError(
                f"{directory}: damaged codebook: it has {len(self._counts)} vocabulary ids, expected {vocabulary}"
            )
        self._vectors = [vectors for _, vectors in parts]
        # Of each id, its file and its first row there.
        self._part = np.repeat(np.arange(len(parts)), [len(counts) for counts, _ in parts])
        self._first = np.concatenate([np.cumsum(counts, dtype=np.int64) - counts for counts, _ in parts])
        pad = -channels % 8
        self._pad = 8 - pad if pad else None

    def vectors_of(self, token_id: int) -> np.ndarray:
        """The vectors of one id, uint8 `(count, w)`."""
        first = self._first[token_id]
        return self._vectors[self._part[token_id]][first : first + self._counts[token_id]]

    def compress(self, bits: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Bits uint8 `(m, w)` of tokens with these ids `(m,)` -> the nearest vector of each one's id, int64 `(m,)`."""
        indexes = np.empty(len(bits), dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        starts = np.flatnonzero(np.diff(ids[order], prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            rows, token_id = order[start:stop], int(ids[order[start]])
            vectors = self.vectors_of(token_id)
            if not len(vectors):
                raise ValueError(f"the codebook has no vector for token id {token_id}")
            nearest = btr_kernels.hamming_topk(torch.from_numpy(bits[rows]), torch.from_numpy(vectors), 1)
            indexes[rows] = nearest.indices.flatten().numpy()
        return indexes

    def restore(self, indexes: np.ndarray, ids: np.ndarray, where: str) -> np.ndarray:
        """The reverse: bits uint8 `(m, w)` of the vectors. ids must be in the vocabulary."""
        self.check_rows(indexes, ids, where)
        rows = self._first[ids] + indexes
        if len(self._vectors) == 1:
            return self._vectors[0].take(rows, axis=0)
        parts = self._part[ids]
        bits = np.empty((len(rows), self._vectors[0].shape[1]), dtype=np.uint8)
        for part in np.unique(parts):
            chosen = parts == part
            bits[chosen] = self._vectors[part].take(rows[chosen], axis=0)
        return bits

    def check_rows(self, indexes: np.ndarray, ids: np.ndarray, where: str) -> None:
        """`ValueError` naming `where` for an index that its token's id has no vector for."""
        if (indexes >= self._counts[ids]).any():
            raise ValueError(f"{where}: damaged file: an index is not below the number of its token id's vectors")

    def check_vectors(self, directory: Path) -> None:
        """`ValueError` where pad bits are set."""
        if self._pad is not None and any((vectors[:, -1] >> self._pad).any() for vectors in self._vectors):
            raise ValueError(f"{directory}: damaged codebook: pad bits are set")
