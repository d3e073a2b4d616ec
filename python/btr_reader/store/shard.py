"""One shard of a store: its tensors, checked before anything is read through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save as serialise
from torch import Tensor

from .files import check_tensor, map_tensors
from .layout import shard_layout
from .manifest import MAX_ID_BYTES, Shard, StoreSettings
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


def pack_shard(passages: Sequence[EncodedPassage], settings: StoreSettings, name: str) -> tuple[bytes, Shard]:
    """The bytes of a shard file, and its entry for the manifest but for its checksum.

    Raises `ValueError` for passages that do not fit the settings.
    """
    if not passages:
        raise ValueError("passages: a shard needs at least one")
    ids = [passage.id.encode() for passage in passages]
    lengths = [len(passage.token_ids) for passage in passages]
    kept = [len(passage.states) for passage in passages]
    shard = Shard(name, 0, "", len(passages), sum(kept), sum(lengths), sum(map(len, ids)))
    layout = shard_layout(settings, shard)
    values = {
        "states": np.concatenate([passage.states.numpy() for passage in passages]),
        "lengths": _checked("length of a passage", lengths, 1, settings.passage_length),
        "token_ids": _checked(
            "token id", np.concatenate([passage.token_ids for passage in passages]), 0, settings.vocabulary - 1
        ),
        "id_bytes": np.frombuffer(b"".join(ids), dtype=np.uint8),
        "id_lengths": _checked("bytes of a passage id", list(map(len, ids)), 0, MAX_ID_BYTES),
    }
    if "slots" in layout:
        slots = np.concatenate([passage.slots.numpy() for passage in passages])
        first_tokens(slots, np.array(lengths), np.array(kept), "passages")
        values |= {"slots": slots, "kept_lengths": np.array(kept)}
    elif kept != lengths:
        raise ValueError(f"passages: {sum(kept)} states for {sum(lengths)} token ids, though none were merged")
    for tensor, expected in layout.items():
        if values[tensor].shape != expected.shape:
            raise ValueError(f"passages: {tensor} must be {expected.shape}, got {values[tensor].shape}")
    return serialise({tensor: values[tensor].astype(expected.dtype) for tensor, expected in layout.items()}), shard


def _checked(what: str, values: Sequence[int] | np.ndarray, least: int, most: int) -> np.ndarray:
    values = np.asarray(values)
    if values.min() < least or values.max() > most:
        raise ValueError(f"passages: {what} must be in {least}..{most}, got {values.min()}..{values.max()}")
    return values


class ShardFile:
    """A shard mapped from disk. Opening reads and checks the lengths, never the states.

    The arrays are those of `layout`; `token_offsets` and `state_offsets` are lists of p + 1 row numbers: passage i has
    the rows from entry i to entry i + 1 of the arrays of original and of kept tokens.
    """

    def __init__(self, directory: Path, entry: Shard, settings: StoreSettings):
        self.path = entry.check_size(directory)
        self._entry = entry
        self._settings = settings
        tensors = map_tensors(self.path)
        for name, expected in shard_layout(settings, entry).items():
            check_tensor(self.path, tensors, name, expected.dtype, expected.shape)
        self.states = tensors["states"]
        self.token_ids = tensors["token_ids"] if settings.original_ids else None
        self.slots = tensors["slots"] if settings.keep < 1 else None
        self.token_offsets = self._offsets("lengths", tensors, entry.original_tokens)
        if self.slots is None:
            self.state_offsets = self.token_offsets
        else:
            self.state_offsets = self._offsets("kept_lengths", tensors, entry.tokens)
        self._id_bytes = tensors["id_bytes"]
        self._id_offsets = self._offsets("id_lengths", tensors, entry.id_bytes, least=0)

    def _offsets(self, name: str, tensors: dict[str, np.ndarray], total: int, least: int = 1) -> list[int]:
        lengths = tensors[name]
        if lengths.sum(dtype=np.int64) != total or (len(lengths) and lengths.min() < least):
            raise ValueError(f"{self.path}: damaged file: {name} must be at least {least} each and {total} together")
        return [0, *np.cumsum(lengths, dtype=np.int64).tolist()]

    def passage_ids(self) -> list[str]:
        """The ids of the shard's passages, in order."""
        text = self._id_bytes.tobytes()
        try:
            return [text[start:stop].decode() for start, stop in pairwise(self._id_offsets)]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: damaged file: a passage id is not UTF-8: {error}") from None

    def verify(self) -> None:
        """Checks the file's SHA-256 and everything in it; raises `ValueError` naming the file."""
        self._entry.verify(self.path.parent)
        self.passage_ids()
        if self.slots is not None:
            first_tokens(self.slots, np.diff(self.token_offsets), np.diff(self.state_offsets), str(self.path))
        if self.token_ids is not None:
            check_ids(self.token_ids, self._settings, str(self.path))
        pad = -self._settings.channels % 8
        if self._settings.kind == "binary" and pad and (self.states[:, -1] >> (8 - pad)).any():
            raise ValueError(f"{self.path}: damaged file: pad bits beyond channel {self._settings.channels} are set")


def check_ids(token_ids: np.ndarray, settings: StoreSettings, where: str) -> None:
    """`ValueError` naming `where` unless all token ids are in the vocabulary."""
    if token_ids.max(initial=0) >= settings.vocabulary or token_ids.min(initial=0) < 0:
        raise ValueError(f"{where}: damaged file: token ids must be in 0..{settings.vocabulary - 1}")
