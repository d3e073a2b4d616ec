"""Reading a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from ..batches import PassageBatch, pad_passages
from .manifest import load_manifest
from .shard import EncodedPassage, ShardFile, check_ids
from .slots import first_tokens

_Place = tuple[ShardFile, int]


class Store:
    """A store of encoded passages, mapped from disk. Any number of processes may read it, also while it is written.

    Opening checks the manifest and the size of every file; a shard's lengths are checked when it is first used, its
    slots and ids when they are fetched, its checksum by `verify`. A passage is found by its id in constant time. Damage
    is a `ValueError` that names the file.

    >>> store = Store("store/")  # doctest: +SKIP
    >>> store.fetch([["p1", "p2"]]).content.shape  # doctest: +SKIP
    torch.Size([1, 2, 64, 96])
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.manifest = load_manifest(self.directory)
        self.settings = self.manifest.settings
        for entry in self.manifest.shards:
            entry.check_size(self.directory)
        self._opened: dict[int, ShardFile] = {}

    def __len__(self) -> int:
        """Number of passages."""
        return self.manifest.total("passages")

    def __contains__(self, passage_id: str) -> bool:
        return passage_id in self._places

    def shard(self, number: int) -> ShardFile:
        """The shard of that number, opened on first use."""
        if number not in self._opened:
            self._opened[number] = ShardFile(self.directory, self.manifest.shards[number], self.settings)
        return self._opened[number]

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where each passage is: (shard, row)."""
        places: dict[str, tuple[int, int]] = {}
        for number in range(len(self.manifest.shards)):
            for row, passage_id in enumerate(self.shard(number).passage_ids()):
                if passage_id in places:
                    raise ValueError(f"{self.shard(number).path}: damaged file: passage id {passage_id!r} occurs twice")
                places[passage_id] = (number, row)
        return places

    def passage_ids(self) -> list[str]:
        """All passage ids in corpus order."""
        return list(self._places)

    def _place(self, passage_id: str) -> _Place:
        place = self._places.get(passage_id)
        if place is None:
            raise KeyError(f"passage {passage_id!r} is not in the store {self.directory}")
        return self.shard(place[0]), place[1]

    def passage(self, passage_id: str) -> EncodedPassage:
        """One passage as it was written; a missing id is a `KeyError`."""
        shard, row = self._place(passage_id)
        tokens = slice(shard.token_offsets[row], shard.token_offsets[row + 1])
        return EncodedPassage(
            passage_id,
            torch.from_numpy(_Gathered([(shard, row)]).states),
            None if shard.token_ids is None else torch.from_numpy(self._token_ids(shard, row)),
            None if shard.slots is None else torch.from_numpy(shard.slots[tokens].astype(np.int64)),
        )

    def fetch(self, passage_ids: Sequence[Sequence[str]]) -> PassageBatch:
        """The states of the passages of each query: bits uint8 `(B, P, T, w)` or float32 `(B, P, T, d)`.

        A missing id is a `KeyError`.
        """
        if not passage_ids or not all(passage_ids):
            raise ValueError("passage_ids must hold at least one passage for every query")
        gathered = _Gathered([self._place(passage_id) for passage_id in chain.from_iterable(passage_ids)])
        counts = [len(row) for row in passage_ids]
        dtype = np.uint8 if self.settings.kind == "binary" else np.float32
        # torch widens float16 with vector instructions, NumPy one by one.
        states = gathered.states if dtype == np.uint8 else torch.from_numpy(gathered.states).float().numpy()
        content = gathered.padded(states, counts, dtype)
        sizes = gathered.padded(gathered.sizes, counts, np.int32)
        if gathered.positions is None:
            return PassageBatch(content, sizes)
        return PassageBatch(content, sizes, gathered.padded(gathered.positions, counts, np.int32))

    def fetch_tokens(self, passage_ids: Sequence[Sequence[str]]) -> PassageBatch:
        """The token ids that the stored states were made from, int64 `(B, P, T)`: Atlas' input for the same text.

        A missing id is a `KeyError`; a store that was encoded without original ids, a `ValueError`.
        """
        if not self.settings.original_ids:
            raise ValueError(f"{self.directory}: encoded with --original-ids drop: it cannot give the tokens back")
        return pad_passages([[self._token_ids(*self._place(i)) for i in row] for row in passage_ids])

    def _token_ids(self, shard: ShardFile, row: int) -> np.ndarray:
        ids = shard.token_ids[shard.token_offsets[row] : shard.token_offsets[row + 1]].astype(np.int64)
        check_ids(ids, self.settings, str(shard.path))
        return ids

    def verify(self, number: int) -> None:
        """Checks one shard's checksum and all that it holds; raises `ValueError` naming the file."""
        self.shard(number).verify()


class _Gathered:
    """The kept tokens of some passages, one after the other: a few calls for all of them, whatever their number."""

    def __init__(self, places: Sequence[_Place]):
        shards = [shard for shard, _ in places]
        kept = [slice(shard.state_offsets[row], shard.state_offsets[row + 1]) for shard, row in places]
        self.kept = np.array([rows.stop - rows.start for rows in kept])
        self.states = np.concatenate([shard.states[rows] for shard, rows in zip(shards, kept, strict=True)])
        self.positions, self.sizes = None, np.ones(len(self.states), dtype=np.int32)
        if shards[0].slots is not None:
            read = [slice(shard.token_offsets[row], shard.token_offsets[row + 1]) for shard, row in places]
            slots = np.concatenate([shard.slots[rows] for shard, rows in zip(shards, read, strict=True)])
            lengths = np.array([rows.stop - rows.start for rows in read])
            where = ", ".join(sorted({str(shard.path) for shard in shards}))
            _, self.positions, self.sizes = first_tokens(slots, lengths, self.kept, where)

    def padded(self, values: np.ndarray, counts: Sequence[int], dtype: np.dtype) -> torch.Tensor:
        """`(m, ...)` of the kept tokens -> `(B, P, T, ...)`, 0 where there is none; counts: passages of each query."""
        out = np.zeros((len(counts), max(counts), int(self.kept.max()), *values.shape[1:]), dtype)
        start = number = 0
        lengths = self.kept.tolist()
        for query, count in enumerate(counts):
            for passage in range(count):
                length = lengths[number]
                out[query, passage, :length] = values[start : start + length]
                start += length
                number += 1
        return torch.from_numpy(out)
