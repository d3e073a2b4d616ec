"""Reading a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from ..batches import PassageBatch, pad_passages
from .code import BitCode, load_code
from .codebook import Codebook
from .index import PassageIndex
from .manifest import load_manifest
from .shard import EncodedPassage, ShardFile, check_ids
from .slots import first_tokens

_Place = tuple[ShardFile, int]


class Store:
    """A store of encoded passages, mapped from disk. Any number of processes may read it, also while it is written.

    Opening checks the manifest and the size of every file; a shard's lengths are checked when it is first used, its
    slots and ids when they are fetched, its checksum by `verify`. A passage of a complete store is found through
    an index on disk: how many there are does not matter. Damage is a `ValueError` that names the file.

    >>> store = Store("store/")  # doctest: +SKIP
    >>> store.fetch([["p1", "p2"]]).content.shape  # doctest: +SKIP
    torch.Size([1, 2, 64, 96])
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.manifest = load_manifest(self.directory)
        self.settings = self.manifest.settings
        for entry in (*self.manifest.shards, *self.manifest.side_files):
            entry.check_size(self.directory)
        self._opened: dict[int, ShardFile] = {}
        self._index = None
        if self.manifest.index is not None:
            self._index = PassageIndex(self.directory / self.manifest.index.file, len(self))

    def __len__(self) -> int:
        """Number of passages."""
        return self.manifest.total("passages")

    def __contains__(self, passage_id: str) -> bool:
        return self._find([passage_id])[0] is not None

    def shard(self, number: int) -> ShardFile:
        """The shard of that number, opened on first use."""
        if number not in self._opened:
            self._opened[number] = ShardFile(self.directory, self.manifest.shards[number], self.manifest)
        return self._opened[number]

    @cached_property
    def code(self) -> BitCode | None:
        """How bits are kept, None for as they are (float states are)."""
        return load_code(self.directory, self.manifest)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where each passage of a store without an index is: (shard, row)."""
        ids = self.passage_ids()
        rows = ((number, row) for number, entry in enumerate(self.manifest.shards) for row in range(entry.passages))
        return dict(zip(ids, rows, strict=True))

    def passage_ids(self) -> list[str]:
        """All passage ids in corpus order; reads them all."""
        ids = [
            passage_id for number in range(len(self.manifest.shards)) for passage_id in self.shard(number).passage_ids()
        ]
        if len(set(ids)) < len(ids):
            repeated = next(passage_id for passage_id, count in Counter(ids).items() if count > 1)
            raise ValueError(f"{self.directory}: damaged store: passage id {repeated!r} occurs twice")
        return ids

    def _find(self, passage_ids: Sequence[str]) -> list[_Place | None]:
        """Shard and row of each passage, None for one that is not in the store."""
        if self._index is None:
            places = [self._places.get(passage_id) for passage_id in passage_ids]
            return [None if place is None else (self.shard(place[0]), place[1]) for place in places]
        found: list[_Place | None] = []
        for passage_id, candidate in zip(passage_ids, self._index.candidates(passage_ids), strict=True):
            place = None if candidate is None else self._confirmed(candidate, passage_id)
            if candidate is not None and place is None:
                others = (self._confirmed(other, passage_id) for other in self._index.others(passage_id))
                place = next((other for other in others if other is not None), None)
            found.append(place)
        return found

    def _confirmed(self, candidate: tuple[int, int], passage_id: str) -> _Place | None:
        """The candidate if it is the passage of that id."""
        number, row = candidate
        if number >= len(self.manifest.shards) or row >= self.manifest.shards[number].passages:
            raise ValueError(
                f"{self.directory / self.manifest.index.file}: damaged file: it names row {row} of shard {number}"
            )
        shard = self.shard(number)
        return (shard, row) if shard.has_id(row, passage_id) else None

    def _place(self, passage_ids: Sequence[str]) -> list[_Place]:
        places = self._find(passage_ids)
        if None in places:
            missing = passage_ids[places.index(None)]
            raise KeyError(f"passage {missing!r} is not in the store {self.directory}")
        return places

    def passage(self, passage_id: str) -> EncodedPassage:
        """One passage as it was written; a missing id is a `KeyError`."""
        ((shard, row),) = self._place([passage_id])
        tokens = slice(shard.token_offsets[row], shard.token_offsets[row + 1])
        return EncodedPassage(
            passage_id,
            torch.from_numpy(_Gathered([(shard, row)], self).states),
            None if shard.token_ids is None else torch.from_numpy(self._token_ids(shard, row)),
            None if shard.slots is None else torch.from_numpy(shard.slots[tokens].astype(np.int64)),
        )

    def fetch(self, passage_ids: Sequence[Sequence[str]], with_ids: bool = False) -> PassageBatch:
        """The states of the passages of each query: bits uint8 `(B, P, T, w)` or float32 `(B, P, T, d)`.

        with_ids: also the vocabulary ids of the tokens, as readers with a code need them. A missing passage is a
        `KeyError`; ids of a store that keeps none, a `ValueError`.
        """
        if not passage_ids or not all(passage_ids):
            raise ValueError("passage_ids must hold at least one passage for every query")
        gathered = _Gathered(self._place(list(chain.from_iterable(passage_ids))), self, with_ids)
        counts = [len(row) for row in passage_ids]
        dtype = np.uint8 if self.settings.kind == "binary" else np.float32
        # torch widens float16 with vector instructions, NumPy one by one.
        states = gathered.states if dtype == np.uint8 else torch.from_numpy(gathered.states).float().numpy()
        content = gathered.padded(states, counts, dtype)
        sizes = gathered.padded(gathered.sizes, counts, np.int32)
        positions = None if gathered.positions is None else gathered.padded(gathered.positions, counts, np.int32)
        ids = gathered.padded(gathered.ids, counts, np.int64) if with_ids else None
        return PassageBatch(content, sizes, positions, ids=ids)

    def fetch_tokens(self, passage_ids: Sequence[Sequence[str]]) -> PassageBatch:
        """The token ids that the stored states were made from, int64 `(B, P, T)`: Atlas' input for the same text.

        A missing id is a `KeyError`; a store that was encoded without original ids, a `ValueError`.
        """
        if not self.settings.original_ids:
            raise ValueError(f"{self.directory}: encoded with --original-ids drop: it cannot give the tokens back")
        return pad_passages([[self._token_ids(*place) for place in self._place(row)] for row in passage_ids])

    def _token_ids(self, shard: ShardFile, row: int) -> np.ndarray:
        ids = shard.token_ids[shard.token_offsets[row] : shard.token_offsets[row + 1]].astype(np.int64)
        check_ids(ids, self.settings, str(shard.path))
        return ids

    def verify(self, number: int) -> None:
        """Checks one shard's checksum and all that it holds; raises `ValueError` naming the file."""
        self.shard(number).verify(self.code)

    def verify_side_files(self) -> None:
        """The same for the index, tables and codebook; every passage must be found where it is."""
        for entry in self.manifest.side_files:
            entry.verify(self.directory)
        for number in range(len(self.manifest.shards)):
            shard = self.shard(number)
            ids = shard.passage_ids()
            for row, (passage_id, place) in enumerate(zip(ids, self._find(ids), strict=True)):
                if place != (shard, row):
                    at = f"row {row} of {shard.path}"
                    raise ValueError(f"{self.directory}: damaged index: passage {passage_id!r} is not found in {at}")
        if isinstance(self.code, Codebook):
            self.code.check_vectors(self.directory)


class _Gathered:
    """The kept tokens of some passages, one after the other: a few calls for all of them, whatever their number."""

    def __init__(self, places: Sequence[_Place], store: Store, with_ids: bool = False):
        shards = [shard for shard, _ in places]
        kept = [slice(shard.row_offsets[row], shard.row_offsets[row + 1]) for shard, row in places]
        read = [slice(shard.token_offsets[row], shard.token_offsets[row + 1]) for shard, row in places]
        where = ", ".join(dict.fromkeys(str(shard.path) for shard in shards))
        self.kept = np.array([rows.stop - rows.start for rows in kept])
        self.states = np.concatenate([shard.rows[rows] for shard, rows in zip(shards, kept, strict=True)])
        self.positions, self.sizes = None, np.ones(len(self.states), dtype=np.int32)
        first = slice(None)
        if shards[0].slots is not None:
            slots = np.concatenate([shard.slots[rows] for shard, rows in zip(shards, read, strict=True)])
            lengths = np.array([rows.stop - rows.start for rows in read])
            first, self.positions, self.sizes = first_tokens(slots, lengths, self.kept, where)
        if store.code is None and not with_ids:
            return
        if shards[0].kept_ids is not None:
            ids = np.concatenate([shard.kept_ids[rows] for shard, rows in zip(shards, kept, strict=True)])
        elif shards[0].token_ids is not None:
            ids = np.concatenate([shard.token_ids[rows] for shard, rows in zip(shards, read, strict=True)])[first]
        else:
            raise ValueError(
                f"{store.directory}: encoded with --original-ids drop: its bits cannot be read by their ids"
            )
        check_ids(ids, store.settings, where)
        self.ids = ids
        if store.code is not None:
            self.states = store.code.restore(self.states, ids, where)

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
