"""Reading a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..batches import PassageBatch, pad_passages
from ..compression import earliest_positions
from .manifest import load_manifest
from .shard import ShardFile, check_size


class Store:
    """A store of encoded passages, mapped from disk.

    Opening checks the manifest and the size of every shard; a shard's offsets are checked when it is first used, its
    checksum by `verify`. A passage is found by its id in constant time. Damage is a `ValueError` that names the file.

    >>> store = Store("store/")  # doctest: +SKIP
    >>> store.fetch([["p1", "p2"]]).content.shape  # doctest: +SKIP
    torch.Size([1, 2, 64, 96])
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.manifest = load_manifest(self.directory)
        self.settings = self.manifest.settings
        for entry in self.manifest.shards:
            check_size(self.directory / entry.file, entry)
        self._opened: dict[int, ShardFile] = {}

    def __len__(self) -> int:
        """Number of passages."""
        return self.manifest.total("passages")

    def __contains__(self, passage_id: str) -> bool:
        return passage_id in self._places

    def shard(self, number: int) -> ShardFile:
        """The shard of that number, opened on first use."""
        if number not in self._opened:
            entry = self.manifest.shards[number]
            self._opened[number] = ShardFile(self.directory / entry.file, entry, self.settings)
        return self._opened[number]

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where each passage is: (shard, row)."""
        places: dict[str, tuple[int, int]] = {}
        for number in range(len(self.manifest.shards)):
            for row, passage_id in enumerate(self.shard(number).passage_ids()):
                if passage_id in places:
                    raise ValueError(
                        f"{self.shard(number).path}: damaged shard: passage id {passage_id!r} occurs twice"
                    )
                places[passage_id] = (number, row)
        return places

    def passage_ids(self) -> list[str]:
        """All passage ids in corpus order."""
        return list(self._places)

    def passage(self, passage_id: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """states, token ids and slots of one passage (see `ShardFile.passage`); a missing id is a `KeyError`."""
        place = self._places.get(passage_id)
        if place is None:
            raise KeyError(f"passage {passage_id!r} is not in the store {self.directory}")
        number, row = place
        return self.shard(number).passage(row)

    def fetch(self, passage_ids: Sequence[Sequence[str]]) -> PassageBatch:
        """The states of the passages of each query: bits uint8 `(B, P, T, w)` or float32 `(B, P, T, d)`."""
        found = [[self.passage(passage_id) for passage_id in row] for row in passage_ids]
        if not found or not all(found):
            raise ValueError("passage_ids must hold at least one passage for every query")
        queries, count = len(found), max(map(len, found))
        width = max(len(states) for row in found for states, _, _ in row)
        dtype = torch.uint8 if self.settings.kind == "binary" else torch.float32
        content = torch.zeros((queries, count, width, self.settings.row_width), dtype=dtype)
        sizes = torch.zeros((queries, count, width), dtype=torch.int32)
        for query, row in enumerate(found):
            for number, (states, _, _) in enumerate(row):
                content[query, number, : len(states)] = states
                sizes[query, number, : len(states)] = 1
        if self.settings.keep == 1:
            return PassageBatch(content, sizes)
        return PassageBatch(content, *_sizes_and_positions([[slots for _, _, slots in row] for row in found], width))

    def fetch_tokens(self, passage_ids: Sequence[Sequence[str]]) -> PassageBatch:
        """The token ids that the stored states were made from, int64 `(B, P, T)`: Atlas' input for the same text."""
        return pad_passages([[self.passage(i)[1].tolist() for i in row] for row in passage_ids])

    def verify(self, number: int) -> None:
        """Checks one shard's checksum and all that it holds; raises `ValueError` naming the file."""
        self.shard(number).verify()


def _sizes_and_positions(slots: list[list[Tensor]], width: int) -> tuple[Tensor, Tensor]:
    """How many tokens each kept one stands for, and where the first of them stood: int32 `(B, P, width)` each."""
    count = max(map(len, slots))
    originals = max(len(passage) for row in slots for passage in row)
    # Column `width` collects the padding and is dropped.
    slot = torch.full((len(slots), count, originals), -1, dtype=torch.int32)
    for query, row in enumerate(slots):
        for number, passage in enumerate(row):
            slot[query, number, : len(passage)] = passage
    slot = slot.flatten(0, 1)
    sizes = torch.zeros((len(slot), width + 1), dtype=torch.int32)
    column = torch.where(slot < 0, width, slot).long()
    sizes = sizes.scatter_add(1, column, torch.ones_like(slot))[:, :width]
    positions = earliest_positions(slot, None, width)
    return sizes.unflatten(0, (len(slots), count)), positions.unflatten(0, (len(slots), count))
