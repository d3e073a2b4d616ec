"""One shard of a store: its tensors, checked before anything is read through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save as serialise
from torch import Tensor

from ..files import check_tensor, map_tensors
from .code import BitCode
from .layout import rows_tensor, shard_layout
from .manifest import MAX_ID_BYTES, Manifest, Shard, StoreSettings
from .slots import first_tokens


@dataclass(frozen=True, eq=False)
class EncodedPassage:
    """What the store keeps of one passage.

    states: uint8 `(kept, w)` or float `(kept, d)`. token_ids: the ids that were read, n of them; None when read from a
    store that does not keep them. slots: int `(n,)`, the row that each went to, None where none were merged.
    """

    id: str
    states: Tensor
    token_ids: Sequence[int] | Tensor | None
    slots: Tensor | None = None


def pack_shard(
    passages: Sequence[EncodedPassage], manifest: Manifest, name: str, code: BitCode | None = None
) -> tuple[bytes, Shard]:
    """The bytes of the next shard file of a store, and its entry for the manifest but for size and checksum.

    code: how bits are kept, None for as they are. Raises `ValueError` for passages that do not fit the settings.
    """
    if not passages:
        raise ValueError("passages: a shard needs at least one")
    settings = manifest.settings
    ids = [passage.id.encode() for passage in passages]
    lengths = np.array([len(passage.token_ids) for passage in passages])
    kept = np.array([len(passage.states) for passage in passages])
    shard = Shard(name, 0, "", len(passages), int(kept.sum()), int(lengths.sum()), sum(map(len, ids)))
    states = np.concatenate([passage.states.numpy() for passage in passages])
    token_ids = np.concatenate([passage.token_ids for passage in passages])
    values = {
        "lengths": _checked("length of a passage", lengths, 1, settings.passage_length),
        "token_ids": _checked("token id", token_ids, 0, settings.vocabulary - 1),
        "kept_ids": token_ids,
        "id_bytes": np.frombuffer(b"".join(ids), dtype=np.uint8),
        "id_lengths": _checked("bytes of a passage id", np.array(list(map(len, ids))), 0, MAX_ID_BYTES),
        "kept_lengths": kept,
    }
    if settings.keep < 1:
        slots = np.concatenate([passage.slots.numpy() for passage in passages])
        first, _, _ = first_tokens(slots, lengths, kept, "passages")
        values |= {"slots": slots, "kept_ids": token_ids[first]}
    elif (kept != lengths).any():
        raise ValueError(f"passages: {kept.sum()} states for {lengths.sum()} token ids, though none were merged")
    if states.shape[1:] != (settings.row_width,):
        raise ValueError(f"passages: states must be (tokens, {settings.row_width}), got {states.shape}")
    rows = states if code is None else code.compress(states, values["kept_ids"])
    index_bytes = None if manifest.codebook is None else manifest.codebook.index_bytes
    values[rows_tensor(settings, shard, index_bytes)[0]] = rows
    layout = shard_layout(settings, shard, index_bytes)
    return serialise({tensor: values[tensor].astype(expected.dtype) for tensor, expected in layout.items()}), shard


def _checked(what: str, values: np.ndarray, least: int, most: int) -> np.ndarray:
    if values.min() < least or values.max() > most:
        raise ValueError(f"passages: {what} must be in {least}..{most}, got {values.min()}..{values.max()}")
    return values


class ShardFile:
    """A shard mapped from disk. Opening reads and checks the lengths, never the states.

    rows is the array of states, codes or indexes, the other arrays have their names in `layout`, None where they are
    not stored. token_offsets and row_offsets are int64 `(p + 1,)`: passage i has entries i to i + 1 of the arrays
    of original and of kept tokens.
    """

    def __init__(self, directory: Path, entry: Shard, manifest: Manifest):
        self.path = entry.check_size(directory)
        self._entry = entry
        self._settings = settings = manifest.settings
        index_bytes = None if manifest.codebook is None else manifest.codebook.index_bytes
        tensors = map_tensors(self.path)
        for name, expected in shard_layout(settings, entry, index_bytes).items():
            check_tensor(self.path, tensors, name, expected.dtype, expected.shape)
        self.rows = tensors[rows_tensor(settings, entry, index_bytes)[0]]
        self.token_ids = tensors["token_ids"] if settings.original_ids else None
        self.kept_ids = tensors["kept_ids"] if settings.needs_ids and not settings.original_ids else None
        self.slots = tensors["slots"] if settings.keep < 1 else None
        self.token_offsets = self._offsets("lengths", tensors, entry.original_tokens)
        if self.slots is None:
            self.row_offsets = self.token_offsets
        else:
            self.row_offsets = self._offsets("kept_lengths", tensors, entry.tokens)
        self._id_bytes = tensors["id_bytes"]
        self._id_offsets = self._offsets("id_lengths", tensors, entry.id_bytes, least=0)

    def _offsets(self, name: str, tensors: dict[str, np.ndarray], total: int, least: int = 1) -> np.ndarray:
        lengths = tensors[name]
        if lengths.sum(dtype=np.int64) != total or (len(lengths) and lengths.min() < least):
            raise ValueError(f"{self.path}: damaged file: {name} must be at least {least} each and {total} together")
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return offsets

    def passage_ids(self) -> list[str]:
        """The ids of the shard's passages, in order."""
        text = self._id_bytes.tobytes()
        try:
            return [text[start:stop].decode() for start, stop in pairwise(self._id_offsets.tolist())]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: damaged file: a passage id is not UTF-8: {error}") from None

    def has_id(self, row: int, passage_id: str) -> bool:
        """Whether the passage of that row has this id."""
        start, stop = self._id_offsets[row : row + 2]
        return self._id_bytes[start:stop].tobytes() == passage_id.encode()

    def ids_of_rows(self) -> np.ndarray:
        """The vocabulary id of every kept token: that of its earliest original one, int `(m,)`."""
        ids = self.token_ids if self.kept_ids is None else self.kept_ids
        check_ids(ids, self._settings, str(self.path))
        return ids if self.kept_ids is not None else ids[self._first_tokens()]

    def _first_tokens(self) -> np.ndarray | slice:
        if self.slots is None:
            return slice(None)
        lengths, kept = np.diff(self.token_offsets), np.diff(self.row_offsets)
        return first_tokens(self.slots, lengths, kept, str(self.path))[0]

    def verify(self, code: BitCode | None) -> None:
        """Checks the file's SHA-256 and everything in it; raises `ValueError` naming the file."""
        where, settings = str(self.path), self._settings
        self._entry.verify(self.path.parent)
        self.passage_ids()
        self._first_tokens()
        if self.token_ids is not None:
            check_ids(self.token_ids, settings, where)
        if code is not None:
            code.check_rows(self.rows, self.ids_of_rows(), where)
        elif settings.kind == "binary" and (pad := -settings.channels % 8) and (self.rows[:, -1] >> (8 - pad)).any():
            raise ValueError(f"{where}: damaged file: pad bits beyond channel {settings.channels} are set")


def check_ids(token_ids: np.ndarray, settings: StoreSettings, where: str) -> None:
    """`ValueError` naming `where` unless all token ids are in the vocabulary."""
    if token_ids.max(initial=0) >= settings.vocabulary or token_ids.min(initial=0) < 0:
        raise ValueError(f"{where}: damaged file: token ids must be in 0..{settings.vocabulary - 1}")
