"""Where each passage of a complete store is, without reading the ids of all passages into memory.

index-<number of shards>.safetensors holds, ordered by hash:

    hashes    uint64 (p,): the first 8 bytes of BLAKE2b of each passage id in UTF-8, little-endian
    shards    uint32 (p,), rows uint32 (p,): its shard, and its row there

Ids with equal hashes stand beside each other; which one is meant the shard's own ids tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors.numpy import save as serialise

from ..files import StoredFile, check_tensor, map_tensors, write_file


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """uint64 `(n,)`."""
    digests = b"".join(blake2b(passage_id.encode(), digest_size=8).digest() for passage_id in ids)
    return np.frombuffer(digests, dtype="<u8")


def write_index(directory: Path, hashes: Sequence[np.ndarray]) -> StoredFile:
    """Writes the index of the passages with these hashes, shard by shard; returns its entry for the manifest."""
    counts = [len(of_shard) for of_shard in hashes]
    shards = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
    rows = np.concatenate([np.arange(count, dtype=np.uint32) for count in counts])
    joined = np.concatenate(hashes)
    order = np.argsort(joined, kind="stable")
    content = {"hashes": joined[order], "shards": shards[order], "rows": rows[order]}
    return write_file(directory, f"index-{len(counts):05d}.safetensors", serialise(content))


class PassageIndex:
    """An index mapped from disk."""

    def __init__(self, path: Path, passages: int):
        tensors = map_tensors(path)
        for name, dtype in (("hashes", np.uint64), ("shards", np.uint32), ("rows", np.uint32)):
            check_tensor(path, tensors, name, dtype, (passages,))
        self._hashes, self._shards, self._rows = tensors["hashes"], tensors["shards"], tensors["rows"]

    def candidates(self, ids: Sequence[str]) -> list[tuple[int, int] | None]:
        """Where each id is, if it is anywhere, by its hash alone: (shard, row), None for a hash that is not there."""
        wanted = id_hashes(ids)
        places = np.searchsorted(self._hashes, wanted)
        present = places < len(self._hashes)
        places = np.where(present, places, 0)
        present &= self._hashes[places] == wanted if len(self._hashes) else False
        found = zip(present.tolist(), self._shards[places].tolist(), self._rows[places].tolist(), strict=True)
        return [(shard, row) if there else None for there, shard, row in found]

    def others(self, passage_id: str) -> Iterator[tuple[int, int]]:
        """All places with the hash of an id: for when another id has the same."""
        (wanted,) = id_hashes([passage_id])
        for place in range(*(np.searchsorted(self._hashes, wanted, side).item() for side in ("left", "right"))):
            yield int(self._shards[place]), int(self._rows[place])
