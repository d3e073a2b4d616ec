"""Shards of an index: passages, each with its vector or bits, in a safetensors file. Tensors:

text     uint8                id, title and text of every passage, one after the other, in UTF-8
offsets  int64 (3 n + 1,)     where each of them begins in it, and its end
vectors  float32 (n, d)       dense indexes
bits     uint8 (n, ceil(d/8)) binary indexes, in the bit order of btr_kernels, pad bits 0
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..files import check_tensor, map_tensors, write_file
from ..passages import Passage
from .manifest import IndexSettings, Manifest, Shard, shard_name


def write_shard(directory: Path, number: int, passages: Sequence[Passage], rows: dict[str, np.ndarray]) -> Shard:
    """Writes passages and what belongs to each of them (`vectors` or `bits`), and returns the manifest's entry."""
    parts = [text.encode() for passage in passages for text in (passage.id, passage.title, passage.text)]
    offsets = np.fromiter(itertools.accumulate(map(len, parts), initial=0), np.int64, len(parts) + 1)
    tensors = {"text": np.frombuffer(b"".join(parts), np.uint8), "offsets": offsets, **rows}
    return Shard(**asdict(write_file(directory, shard_name(number), save(tensors))), passages=len(passages))


class ShardFile:
    """An opened shard, mapped from disk. Sizes and offsets are checked here, texts when they are read."""

    def __init__(self, directory: Path, entry: Shard, settings: IndexSettings):
        self.path = entry.check_size(directory)
        self._tensors = map_tensors(self.path)
        check_tensor(self.path, self._tensors, "offsets", np.int64, (3 * entry.passages + 1,))
        text, offsets = self._tensors.get("text"), self._tensors["offsets"]
        check_tensor(self.path, self._tensors, "text", np.uint8, (0 if text is None else text.size,))
        if offsets[0] != 0 or offsets[-1] != text.size or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(f"{self.path}: damaged file: offsets must rise from 0 to {text.size}")
        d = settings.channels
        if settings.kind == "dense":
            check_tensor(self.path, self._tensors, "vectors", np.float32, (entry.passages, d))
        if settings.kind == "binary":
            check_tensor(self.path, self._tensors, "bits", np.uint8, (entry.passages, -(-d // 8)))
            if d % 8 and (self._tensors["bits"][:, -1] >> (d % 8)).any():
                raise ValueError(f"{self.path}: damaged file: pad bits must be 0")

    def rows(self, name: str) -> np.ndarray:
        """The tensor `vectors` or `bits`."""
        return self._tensors[name]

    def passage(self, row: int) -> Passage:
        text, offsets = self._tensors["text"], self._tensors["offsets"]
        bounds = offsets[3 * row : 3 * row + 4].tolist()
        try:
            parts = [text[start:end].tobytes().decode() for start, end in itertools.pairwise(bounds)]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: damaged file: passage {row} is not UTF-8 text: {error}") from None
        return Passage(*parts)


class IndexedPassages(Sequence[Passage]):
    """The passages of an index in the order of the corpus, read from its shards when asked for."""

    def __init__(self, directory: Path, manifest: Manifest):
        self.shards = [ShardFile(directory, entry, manifest.settings) for entry in manifest.shards]
        self._starts = list(itertools.accumulate((entry.passages for entry in manifest.shards), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, position: int) -> Passage:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} passages")
        number = bisect.bisect_right(self._starts, position) - 1
        return self.shards[number].passage(position - self._starts[number])
