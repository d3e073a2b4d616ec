"""The store's manifest: what is in a store, and its reading and writing.

Store format, version 2. A store is a directory:

    manifest.json            this file's `Manifest`, replaced atomically after every shard
    shard-00000.safetensors  passages in corpus order, a bounded number in each (tensors: `layout`)
    ...
    index-00001.safetensors  where each passage is, once the store is complete (`index`)
    tables.safetensors       only with masked bits (`tables`)
    codebook-00000...        only with a codebook (`codebook`)
    work/                    only while a codebook is made: the store of plain bits that it is made from

Bits are in the order of `btr_kernels`: channel c in byte c // 8, bit c % 8 from the least significant; pad bits are 0.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..files import StoredFile, write_durably
from ..jsonl import read_json_object
from ..records import from_record, typed
from ..settings import ReaderSettings

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
    before others. masked_bits: bits stored of each token, 0 for all. codebook_bytes: bytes per token read that a store
    with a codebook was to take, 0 for none. original_ids: whether the token ids that were read are kept.
    passage_length: tokens that a passage is cut to, the end token included. shard_passages: passages in a full shard.
    """

    reader: str
    corpus: str
    vocabulary: int
    channels: int
    cut: ReaderSettings
    kind: Kind
    keep: float
    same_id_first: bool
    masked_bits: int
    codebook_bytes: float
    original_ids: bool
    passage_length: int
    shard_passages: int

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that are out of range or do not go together."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: the share of tokens to keep must be in (0, 1], got {self.keep!r}")
        if min(self.channels, self.vocabulary, self.shard_passages) < 1:
            raise ValueError(
                "channels, vocabulary and shard_passages must be at least 1, "
                f"got {self.channels}, {self.vocabulary}, {self.shard_passages}"
            )
        if not 1 <= self.passage_length <= MAX_PASSAGE_LENGTH:
            raise ValueError(f"passage_length must be in 1..{MAX_PASSAGE_LENGTH}, got {self.passage_length}")
        if not 0 <= self.masked_bits <= self.channels:
            raise ValueError(f"masked_bits must be in 0..{self.channels}, got {self.masked_bits}")
        if not 0 <= self.codebook_bytes < math.inf:
            raise ValueError(f"codebook_bytes must be finite and not negative, got {self.codebook_bytes}")
        if self.kind != "binary" and (self.masked_bits or self.codebook_bytes):
            raise ValueError(f"masked_bits and codebook_bytes are for binary stores, kind is {self.kind!r}")
        if self.masked_bits and self.codebook_bytes:
            raise ValueError("masked_bits and codebook_bytes exclude each other: vectors of a codebook are whole")

    @property
    def row_width(self) -> int:
        """Elements of a token's states: bytes of bits, or channels."""
        return -(-self.channels // 8) if self.kind == "binary" else self.channels

    @property
    def needs_ids(self) -> bool:
        """Whether a token is read back through its vocabulary id."""
        return bool(self.masked_bits or self.codebook_bytes)


@dataclass(frozen=True)
class Corpus:
    """A passages file: its SHA-256, and the number of its first shard."""

    sha256: str
    first_shard: int


@dataclass(frozen=True)
class CodebookFiles:
    """The files of a codebook, and the bytes that an index into the vectors of one token id takes."""

    index_bytes: int
    files: tuple[StoredFile, ...]


@dataclass(frozen=True)
class Manifest:
    """A store's settings and its finished shards.

    appended: passages files that were added after that of the settings. complete: whether all of the last one is in.
    """

    settings: StoreSettings
    shards: tuple[Shard, ...] = field(default=())
    appended: tuple[Corpus, ...] = field(default=())
    complete: bool = False
    index: StoredFile | None = None
    tables: StoredFile | None = None
    codebook: CodebookFiles | None = None

    @property
    def side_files(self) -> tuple[StoredFile, ...]:
        """The files beside the shards."""
        files = [entry for entry in (self.index, self.tables) if entry is not None]
        return (*files, *(() if self.codebook is None else self.codebook.files))

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
        settings = dict(typed(record, "settings", dict))
        settings["cut"] = ReaderSettings.from_dict(settings.get("cut"), "cut")
        shards = tuple(_file(entry, Shard) for entry in typed(record, "shards", list))
        appended = tuple(from_record(entry, Corpus) for entry in typed(record, "appended", list))
        if any(corpus.first_shard > len(shards) for corpus in appended):
            raise TypeError(f"appended names shards that are not there: {appended!r}")
        index, tables, codebook = record.get("index"), record.get("tables"), record.get("codebook")
        manifest = Manifest(
            from_record(settings, StoreSettings, {"ReaderSettings": ReaderSettings}),
            shards,
            appended,
            typed(record, "complete", bool),
            None if index is None else _file(index, StoredFile),
            None if tables is None else _file(tables, StoredFile),
            None if codebook is None else _codebook(codebook),
        )
        if (manifest.tables is not None) != bool(manifest.settings.masked_bits):
            raise TypeError(f"tables is {tables!r}, though masked_bits is {manifest.settings.masked_bits}")
        if (manifest.index is not None) != manifest.complete:
            raise TypeError(f"index is {index!r}, though complete is {manifest.complete}")
        if manifest.codebook is None and manifest.settings.codebook_bytes and shards:
            raise TypeError("there are shards without the codebook that they need")
        return manifest
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged manifest: {error}") from None


_F = TypeVar("_F", bound=StoredFile)


def _file(record: Any, cls: type[_F]) -> _F:
    entry = from_record(record, cls)
    if Path(entry.file).name != entry.file or not entry.file.endswith(".safetensors"):
        raise TypeError(f"a store's file must be a plain safetensors name, got {entry.file!r}")
    return entry


def _codebook(record: Any) -> CodebookFiles:
    if not isinstance(record, dict) or set(record) != {"index_bytes", "files"} or record["index_bytes"] not in (1, 2):
        raise TypeError(f"codebook must have index_bytes (1 or 2) and files, got {record!r}")
    files = tuple(_file(entry, StoredFile) for entry in typed(record, "files", list))
    if not files:
        raise TypeError("codebook must have at least one file")
    return CodebookFiles(record["index_bytes"], files)
