"""An index directory's manifest. Index format, version 1:

manifest.json            `Manifest`, replaced atomically after every shard
shard-00000.safetensors  passages in corpus order with their vectors or bits (`shards`)
bm25/                    for BM25: the files of bm25s
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from ..files import StoredFile, write_durably
from ..jsonl import read_json_object
from ..records import from_record, typed
from .bm25 import STEMMERS, StemmerName

FORMAT = "btr-index"
VERSION = 1
MANIFEST_FILE = "manifest.json"
Kind = Literal["bm25", "dense", "binary"]
KINDS: tuple[str, ...] = get_args(Kind)
Similarity = Literal["cosine", "dot"]


@dataclass(frozen=True)
class Shard(StoredFile):
    """One shard file and its number of passages."""

    passages: int


@dataclass(frozen=True)
class IndexSettings:
    """What determines an index. corpus: SHA-256 of the passages file. stemmer: of BM25's words.

    Of dense and binary ones: channels, d of the vectors; similarity: whether vectors are scaled to length 1; encoder:
    fingerprint of the encoder and passage_length, tokens it cuts passages to; or vectors: SHA-256 of their file.
    """

    kind: Kind
    corpus: str
    stemmer: StemmerName = "none"
    channels: int = 0
    similarity: Similarity = "cosine"
    encoder: str = ""
    passage_length: int = 0
    vectors: str = ""


@dataclass(frozen=True)
class Manifest:
    """An index's settings and its finished files. complete: whether retrieval can use it."""

    settings: IndexSettings
    shards: tuple[Shard, ...] = field(default=())
    bm25: tuple[StoredFile, ...] = field(default=())
    complete: bool = False

    @property
    def passages(self) -> int:
        return sum(shard.passages for shard in self.shards)

    def save(self, directory: Path) -> None:
        """Replaces the manifest in one step: a reader, or a kill, meets the old one or the new one."""
        record = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_durably(directory / MANIFEST_FILE, (json.dumps(record, indent=2) + "\n").encode())

    def differences(self, wanted: IndexSettings) -> list[str]:
        """The settings that are not those wanted, as text."""
        old, new = asdict(self.settings), asdict(wanted)
        return [f"{name} is {old[name]!r}, asked for {new[name]!r}" for name in old if old[name] != new[name]]

    def check_sizes(self, directory: Path) -> None:
        for entry in (*self.shards, *self.bm25):
            entry.check_size(directory)

    def verify(self, directory: Path) -> None:
        """`ValueError` unless every file is there with its size and SHA-256."""
        for entry in (*self.shards, *self.bm25):
            entry.verify(directory)

    def with_shard(self, shard: Shard) -> Manifest:
        return replace(self, shards=(*self.shards, shard))


def load_manifest(directory: Path) -> Manifest:
    """Reads and checks an index's manifest; errors name the file and what is wrong with it."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: not an index (no {MANIFEST_FILE}): make one with btr index")
    record = read_json_object(path, "damaged manifest")
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: not the manifest of a {FORMAT}")
    if record.get("version") != VERSION:
        raise ValueError(
            f"{path}: index format version {record.get('version')!r}, this program reads {VERSION}: build it again"
        )
    try:
        settings = from_record(record.get("settings"), IndexSettings)
        if settings.kind not in KINDS or settings.similarity not in get_args(Similarity):
            raise TypeError(f"kind {settings.kind!r}, similarity {settings.similarity!r}")
        if settings.stemmer not in STEMMERS:
            raise TypeError(f"stemmer {settings.stemmer!r}")
        if (settings.kind == "bm25") != (settings.channels == 0):
            raise TypeError(f"kind {settings.kind!r} with {settings.channels} channels")
        shards = tuple(from_record(entry, Shard) for entry in typed(record, "shards", list))
        bm25 = tuple(from_record(entry, StoredFile) for entry in typed(record, "bm25", list))
        for number, entry in enumerate(shards):
            if entry.file != shard_name(number):
                raise TypeError(f"file {entry.file!r}, expected {shard_name(number)!r}")
        return Manifest(settings, shards, bm25, typed(record, "complete", bool))
    except TypeError as error:
        raise ValueError(f"{path}: damaged manifest: {error}") from None


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
