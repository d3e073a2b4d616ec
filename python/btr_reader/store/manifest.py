"""The store's manifest: what is in a store, and its reading and writing.

Store format, version 1. A store is a directory:

    manifest.json           this file's `Manifest`, replaced atomically after every shard
    shard-00000.safetensors passages in corpus order, a bounded number in each
    ...

A shard's tensors, for p passages:

    states         the kept tokens of all passages in a row: uint8 (tokens, w) bits, or float (tokens, d)
    state_offsets  int64 (p + 1): passage i has the rows state_offsets[i] to state_offsets[i + 1] of `states`
    token_ids      int32 (original tokens): the token ids that were read, before merging
    token_offsets  int64 (p + 1): the same for `token_ids`
    slots          int16 (original tokens), only where tokens were merged: the row, counted from the passage's first,
                   that each original token went to; sizes and positions of the kept tokens follow from it
    id_bytes       uint8: the passage ids in UTF-8, one after the other
    id_offsets     int64 (p + 1): where each begins

Bits are in the order of `btr_kernels`: channel c in byte c // 8, bit c % 8 from the least significant; pad bits are 0.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..jsonl import read_json_object
from ..settings import ReaderSettings

FORMAT = "btr-store"
VERSION = 1
MANIFEST_FILE = "manifest.json"
Kind = Literal["binary", "float32", "float16"]
KINDS = ("binary", "float32", "float16")


@dataclass(frozen=True)
class Shard:
    """One shard file: its name, size and SHA-256, and how much it holds."""

    file: str
    bytes: int
    sha256: str
    passages: int
    tokens: int
    original_tokens: int


@dataclass(frozen=True)
class StoreSettings:
    """What determines every byte of a store; a store is only ever continued with the same settings.

    reader, corpus: SHA-256 of the reader's offline part and of the passages file. channels: d. keep: share of a
    passage's tokens kept. passage_length: tokens that a passage is cut to, the end token included. shard_passages:
    passages in a full shard.
    """

    reader: str
    corpus: str
    channels: int
    cut: ReaderSettings
    kind: Kind
    keep: float
    passage_length: int
    shard_passages: int

    @property
    def row_width(self) -> int:
        """Elements of a row of `states`: bytes of bits, or channels."""
        return -(-self.channels // 8) if self.kind == "binary" else self.channels


@dataclass(frozen=True)
class Manifest:
    """A store's settings and its finished shards; `complete` once the whole corpus is in it."""

    settings: StoreSettings
    shards: tuple[Shard, ...] = field(default=())
    complete: bool = False

    def total(self, name: str) -> int:
        """The sum of a number over all shards: `bytes`, `passages`, `tokens` or `original_tokens`."""
        return sum(getattr(shard, name) for shard in self.shards)

    def with_shard(self, shard: Shard) -> Manifest:
        return replace(self, shards=(*self.shards, shard))

    def save(self, store: Path) -> None:
        """Replaces the manifest in one step: a reader, or a kill, meets the old one or the new one."""
        record = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_durably(store / MANIFEST_FILE, (json.dumps(record, indent=2) + "\n").encode())


def load_manifest(store: Path) -> Manifest:
    """Reads and checks a store's manifest; errors name the file and what is wrong with it."""
    path = store / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{store}: not a store (no {MANIFEST_FILE})")
    record = read_json_object(path, "damaged manifest")
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: not the manifest of a {FORMAT}")
    version = record.get("version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path}: damaged manifest: version {version!r}")
    if version > VERSION:
        raise ValueError(f"{path}: store format version {version} is newer than the {VERSION} that this program reads")
    try:
        settings = dict(_typed(record, "settings", dict))
        settings["cut"] = ReaderSettings.from_dict(settings.get("cut"), f"{path}: cut")
        shards = tuple(_shard(entry) for entry in _typed(record, "shards", list))
        manifest = Manifest(_store_settings(settings), shards, _typed(record, "complete", bool))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged manifest: {error}") from None
    return manifest


def _typed(record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
    return value


def _fields(record: Any, cls: type, types: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    if not isinstance(record, dict) or set(record) != {f.name for f in fields(cls)}:
        raise TypeError(f"a {cls.__name__} must have {', '.join(f.name for f in fields(cls))}, got {record!r}")
    for name, kind in types.items():
        value = record[name]
        if not isinstance(value, kind) or isinstance(value, bool) or (not isinstance(value, str) and value < 0):
            raise TypeError(f"{name} of a {cls.__name__} is {value!r}")
    return record


def _shard(record: Any) -> Shard:
    numbers = dict.fromkeys(("bytes", "passages", "tokens", "original_tokens"), int)
    shard = Shard(**_fields(record, Shard, {"file": str, "sha256": str, **numbers}))
    if Path(shard.file).name != shard.file or not shard.file.endswith(".safetensors"):
        raise TypeError(f"a shard's file must be a plain safetensors name, got {shard.file!r}")
    return shard


def _store_settings(record: dict[str, Any]) -> StoreSettings:
    numbers = dict.fromkeys(("channels", "passage_length", "shard_passages"), int)
    types = {"reader": str, "corpus": str, "kind": str, "keep": (int, float), **numbers}
    settings = StoreSettings(**_fields(record, StoreSettings, types))
    if settings.kind not in KINDS or not 0 < settings.keep <= 1 or settings.channels < 1:
        raise TypeError(f"kind {settings.kind!r}, keep {settings.keep!r}, channels {settings.channels!r}")
    return settings


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file so that a kill or a full disk leaves either nothing or all of it under its name.

    Raises `OSError` naming the file; what was there before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; what was complete is still there") from None
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
