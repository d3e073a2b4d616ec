"""One shard of a store: its tensors, checked before anything is read through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ..digests import file_digest
from .manifest import Shard, StoreSettings

_STATE_DTYPES = {"binary": torch.uint8, "float32": torch.float32, "float16": torch.float16}
# slots are int16: a longer passage could not be numbered.
MAX_PASSAGE_LENGTH = torch.iinfo(torch.int16).max


@dataclass(frozen=True, eq=False)
class EncodedPassage:
    """What the store keeps of one passage.

    states: uint8 `(kept, w)` or float `(kept, d)`. token_ids: the ids that were read, n of them. slots: int `(n,)`, the
    row that each went to, None where none were merged.
    """

    id: str
    states: Tensor
    token_ids: Sequence[int]
    slots: Tensor | None = None


def pack_shard(passages: Sequence[EncodedPassage], settings: StoreSettings) -> bytes:
    """The bytes of a shard file."""
    ids = [passage.id.encode() for passage in passages]
    tensors = {
        "states": torch.cat([passage.states for passage in passages]).to(_STATE_DTYPES[settings.kind]),
        "state_offsets": _offsets([len(passage.states) for passage in passages]),
        "token_ids": torch.tensor([i for passage in passages for i in passage.token_ids], dtype=torch.int32),
        "token_offsets": _offsets([len(passage.token_ids) for passage in passages]),
        "id_bytes": torch.frombuffer(bytearray(b"".join(ids)), dtype=torch.uint8),
        "id_offsets": _offsets([len(identifier) for identifier in ids]),
    }
    if settings.keep < 1:
        tensors["slots"] = torch.cat([passage.slots for passage in passages]).to(torch.int16)
    return serialise(tensors)


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.nn.functional.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0))


class ShardFile:
    """A shard mapped from disk. Opening reads and checks the offsets, never the states."""

    def __init__(self, path: Path, entry: Shard, settings: StoreSettings):
        self.path = path
        self._entry = entry
        self._settings = settings
        check_size(path, entry)
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: damaged shard: {error}") from None
        expected = self._expected(tensors)
        for name, (dtype, shape) in expected.items():
            tensor = tensors.get(name)
            if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
                got = "none" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                raise ValueError(f"{path}: damaged shard: tensor {name} must be {dtype} {shape}, got {got}")
        self.states: Tensor = tensors["states"]
        self.token_ids: Tensor = tensors["token_ids"]
        self.slots: Tensor | None = tensors.get("slots") if settings.keep < 1 else None
        self.state_offsets = self._checked_offsets(tensors, "state_offsets", entry.tokens)
        self.token_offsets = self._checked_offsets(tensors, "token_offsets", entry.original_tokens)
        self._id_offsets = self._checked_offsets(tensors, "id_offsets", len(tensors["id_bytes"]))
        self._id_bytes = tensors["id_bytes"].numpy().tobytes()

    def _expected(self, tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        entry, settings = self._entry, self._settings
        id_bytes = tensors["id_bytes"].numel() if "id_bytes" in tensors else 0
        expected = {
            "states": (_STATE_DTYPES[settings.kind], (entry.tokens, settings.row_width)),
            "state_offsets": (torch.int64, (entry.passages + 1,)),
            "token_ids": (torch.int32, (entry.original_tokens,)),
            "token_offsets": (torch.int64, (entry.passages + 1,)),
            "id_bytes": (torch.uint8, (id_bytes,)),
            "id_offsets": (torch.int64, (entry.passages + 1,)),
        }
        if settings.keep < 1:
            expected["slots"] = (torch.int16, (entry.original_tokens,))
        return expected

    def _checked_offsets(self, tensors: dict[str, Tensor], name: str, total: int) -> list[int]:
        offsets = tensors[name].tolist()
        if offsets[0] != 0 or offsets[-1] != total or any(a > b for a, b in pairwise(offsets)):
            raise ValueError(f"{self.path}: damaged shard: {name} must rise from 0 to {total}")
        return offsets

    def passage_ids(self) -> list[str]:
        """The ids of the shard's passages, in order."""
        offsets = self._id_offsets
        try:
            return [self._id_bytes[start:stop].decode() for start, stop in pairwise(offsets)]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: damaged shard: a passage id is not UTF-8: {error}") from None

    def passage(self, row: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """states `(kept, width)`, token ids int32 `(n,)` and slots int16 `(n,)` or None: views of the file."""
        start, stop = self.token_offsets[row], self.token_offsets[row + 1]
        states = self.states[self.state_offsets[row] : self.state_offsets[row + 1]]
        slots = None if self.slots is None else self.slots[start:stop]
        kept = len(states)
        if slots is not None and (int(slots.min()) < 0 or int(slots.max()) >= kept):
            raise ValueError(f"{self.path}: damaged shard: slots of passage {row} must be in 0..{kept - 1}")
        if slots is None and kept != stop - start:
            raise ValueError(
                f"{self.path}: damaged shard: passage {row} has {stop - start} token ids for {kept} states"
            )
        return states, self.token_ids[start:stop], slots

    def verify(self) -> None:
        """Checks the file's SHA-256, and that every passage can be read; raises `ValueError` naming the file."""
        if file_digest(self.path) != self._entry.sha256:
            raise ValueError(f"{self.path}: damaged shard: its SHA-256 is not the one in the manifest")
        self.passage_ids()
        for row in range(self._entry.passages):
            states, _, slots = self.passage(row)
            if slots is not None and slots.unique().numel() != len(states):
                raise ValueError(f"{self.path}: damaged shard: passage {row} has states that no token went to")
        pad = -self._settings.channels % 8
        if self._settings.kind == "binary" and pad and bool((self.states[:, -1] >> (8 - pad)).any()):
            raise ValueError(f"{self.path}: damaged shard: pad bits beyond channel {self._settings.channels} are set")


def check_size(path: Path, entry: Shard) -> None:
    """Raises `ValueError` unless the shard's file is there with the size that the manifest says."""
    if not path.is_file():
        raise ValueError(f"{path}: the shard is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise ValueError(f"{path}: damaged shard: {size} bytes, expected {entry.bytes}")
