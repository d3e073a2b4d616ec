"""The store's manifest: what is in a store, and its reading and writing.

Store format, version 2. A store is a directory:

    manifest.json            this file's `Manifest`, replaced atomically after every shard
    shard-00000.safetensors  passages in corpus order, a bounded number in each (tensors: `layout`)
    ...

Bits are in the order of `btr_kernels`: channel c in byte c // 8, bit c % 8 from the least significant; pad bits are 0.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..jsonl import read_json_object
from ..settings import ReaderSettings
from .files import StoredFile, write_durably

FORMAT = "btr-store"
VERSION = 2
MANIFEST_FILE = "manifest.json"
Kind = Literal["binary", "float32", "float16"]
KINDS = ("binary", "float32", "float16")
# Lengths and slots have 16 bits.
MAX_PASSAGE_LENGTH = MAX_ID_BYTES = 2**16 - 1


@dataclass(frozen=True)
class Shard(StoredFile):
    """One shard file and how much it holds: passages, kept and original tokens, bytes of the passage ids' text."""

    passages: int
    tokens: int
    original_tokens: int
    id_bytes: int


@dataclass(frozen=True)
class StoreSettings:
    """What determines every byte of a store; a store is only ever continued with the same settings.

    reader, corpus: SHA-256 of the reader's offline part and of the (first) passages file. vocabulary: number of token
    ids. channels: d. keep: share of a passage's tokens kept; same_id_first: tokens of one vocabulary id are merged
    before others. original_ids: whether the token ids that were read are kept. passage_length: tokens that a passage is
    cut to, the end token included. shard_passages: passages in a full shard.
    """

    reader: str
    corpus: str
    vocabulary: int
    channels: int
    cut: ReaderSettings
    kind: Kind
    keep: float
    same_id_first: bool
    original_ids: bool
    passage_length: int
    shard_passages: int


@dataclass(frozen=True)
class Corpus:
    """A passages file: its SHA-256, and the number of its first shard."""

    sha256: str
    first_shard: int


@dataclass(frozen=True)
class Manifest:
    """A store's settings and its finished shards.

    appended: passages files that were added after that of the settings. complete: whether all of the last one is in.
    """

    settings: StoreSettings
    shards: tuple[Shard, ...] = field(default=())
    appended: tuple[Corpus, ...] = field(default=())
    complete: bool = False

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The passages files in the store, in order."""
        return (Corpus(self.settings.corpus, 0), *self.appended)

    def total(self, name: str) -> int:
        """The sum of a number over all shards, such as `bytes`, `passages`, `tokens` or `original_tokens`."""
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
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{path}: damaged manifest: version {version!r}")
    if version > VERSION:
        raise ValueError(f"{path}: store format version {version} is newer than the {VERSION} that this program reads")
    if version < VERSION:
        raise ValueError(f"{path}: store format version {version} is no longer read: encode the corpus again")
    try:
        settings = dict(_typed(record, "settings", dict))
        settings["cut"] = ReaderSettings.from_dict(settings.get("cut"), f"{path}: cut")
        shards = tuple(_file(entry, Shard) for entry in _typed(record, "shards", list))
        appended = tuple(_from_record(entry, Corpus) for entry in _typed(record, "appended", list))
        if any(corpus.first_shard > len(shards) for corpus in appended):
            raise TypeError(f"appended names shards that are not there: {appended!r}")
        return Manifest(_store_settings(settings), shards, appended, _typed(record, "complete", bool))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged manifest: {error}") from None


def _typed(record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
    return value


_TYPES = {"int": int, "str": str, "bool": bool, "float": (int, float), "Kind": str, "ReaderSettings": ReaderSettings}
_T = TypeVar("_T")


def _from_record(record: Any, cls: type[_T]) -> _T:
    """A dataclass from a JSON object with exactly its fields, of their types; numbers are not negative."""
    if not isinstance(record, dict) or set(record) != {f.name for f in fields(cls)}:
        raise TypeError(f"a {cls.__name__} must have {', '.join(f.name for f in fields(cls))}, got {record!r}")
    for entry in fields(cls):
        value, kind = record[entry.name], _TYPES[entry.type]
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong or (isinstance(value, (int, float)) and not 0 <= value < 2**63):
            raise TypeError(f"{entry.name} of a {cls.__name__} is {value!r}")
    return cls(**record)


_F = TypeVar("_F", bound=StoredFile)


def _file(record: Any, cls: type[_F]) -> _F:
    entry = _from_record(record, cls)
    if Path(entry.file).name != entry.file or not entry.file.endswith(".safetensors"):
        raise TypeError(f"a store's file must be a plain safetensors name, got {entry.file!r}")
    return entry


def _store_settings(record: dict[str, Any]) -> StoreSettings:
    settings = _from_record(record, StoreSettings)
    if settings.kind not in KINDS or not 0 < settings.keep <= 1 or min(settings.channels, settings.vocabulary) < 1:
        raise TypeError(
            f"kind {settings.kind!r}, keep {settings.keep!r}, channels {settings.channels!r}, "
            f"vocabulary {settings.vocabulary!r}"
        )
    if not 1 <= settings.passage_length <= MAX_PASSAGE_LENGTH:
        raise TypeError(f"passage_length must be in 1..{MAX_PASSAGE_LENGTH}, got {settings.passage_length!r}")
    return settings
