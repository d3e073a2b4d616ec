"""Building an index directory, resumably, and opening it as a retriever."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import btr_kernels

from ..digests import file_digest
from ..files import LOCK_FILE, StoredFile, locked
from ..passages import Passage, read_passages
from .bm25 import FILES as BM25_FILES
from .bm25 import Bm25Retriever, StemmerName
from .manifest import KINDS, MANIFEST_FILE, IndexSettings, Kind, Manifest, Similarity, load_manifest
from .retriever import Retriever
from .shards import IndexedPassages, write_shard
from .text_encoder import TextEncoder
from .vectors import RERANKED, BinaryRetriever, DenseRetriever, normalized, read_vectors

# Passages in a shard: what an interruption loses at most, half a minute to minutes of an encoder's work on a CPU.
SHARD_PASSAGES = 4096
_BM25 = "bm25"


@dataclass(frozen=True)
class _VectorSource:
    """Where the vectors of passages come from: an encoder, or a file with those of the whole corpus."""

    encoder: TextEncoder | None
    given: np.ndarray | None
    similarity: Similarity
    batch_size: int

    @property
    def channels(self) -> int:
        return self.encoder.channels if self.given is None else self.given.shape[1]

    def vectors(self, passages: list[Passage], start: int, bar: tqdm) -> np.ndarray:
        """float32 `(n, d)` of the passages, the first of which is number `start` of the corpus."""
        if self.given is None:
            texts = [f"{passage.title} {passage.text}".strip() for passage in passages]
            vectors = self.encoder.encode(texts, self.batch_size, bar)
        else:
            vectors = self.given[start : start + len(passages)].astype(np.float32)
            bar.update(len(passages))
        wrong = ~np.isfinite(vectors).all(1)
        if wrong.any():
            raise ValueError(f"the vector of passage {passages[int(wrong.argmax())].id!r} is not finite")
        return normalized(vectors) if self.similarity == "cosine" else vectors


def build_index(
    corpus: str | Path,
    out: str | Path,
    kind: Kind = "bm25",
    *,
    stemmer: StemmerName = "none",
    encoder: TextEncoder | None = None,
    vectors: str | Path | None = None,
    similarity: Similarity = "cosine",
    batch_size: int = 32,
    progress: bool = True,
) -> int:
    """Builds an index of a JSON-lines corpus in the directory `out`; returns the number of its passages.

    kind: `bm25`, its words stemmed or not (`Bm25Retriever`); `dense` or `binary`, by an encoder or by the file
    `vectors` with one row a passage (`read_vectors`).
    similarity: `cosine` scales vectors to length 1, `dot` takes them as they are. The same call continues an index that
    was interrupted, after its last complete shard, and checks the files that are there. Raises `ValueError` for one
    begun with other settings, for vectors that do not fit the corpus, and for damaged files.

    >>> build_index("passages.jsonl", "index/")  # doctest: +SKIP
    7435
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "bm25" and (encoder is not None or vectors is not None):
        raise ValueError("a bm25 index takes neither an encoder nor vectors")
    if kind != "bm25" and stemmer != "none":
        raise ValueError(f"a {kind} index takes no stemmer")
    if kind != "bm25" and (encoder is None) == (vectors is None):
        raise ValueError(f"a {kind} index needs either an encoder or vectors")
    # The whole file is read first: a malformed line must not come up after hours.
    total = sum(1 for _ in read_passages(corpus))
    settings = IndexSettings(kind, file_digest(corpus), stemmer)
    source = None
    if kind != "bm25":
        source = _VectorSource(encoder, None if vectors is None else read_vectors(vectors), similarity, batch_size)
        if source.given is not None and len(source.given) != total:
            raise ValueError(f"{vectors}: {len(source.given)} vectors for the {total} passages of {corpus}")
        settings = replace(
            settings,
            channels=source.channels,
            similarity=similarity,
            encoder="" if encoder is None else encoder.fingerprint(),
            passage_length=0 if encoder is None else encoder.max_length,
            vectors="" if vectors is None else file_digest(vectors),
        )
    directory = Path(out)
    with locked(directory, "index"):
        manifest = _begin(directory, settings)
        manifest = _add_shards(directory, manifest, corpus, source, total, progress)
        if kind == "bm25" and not manifest.complete:
            retriever = Bm25Retriever(IndexedPassages(directory, manifest), stemmer=stemmer, progress=progress)
            manifest = replace(manifest, bm25=_save_bm25(retriever, directory))
        if not manifest.complete:
            replace(manifest, complete=True).save(directory)
    return total


def _begin(directory: Path, settings: IndexSettings) -> Manifest:
    """The manifest of the index that is there, if it is of these settings and whole, or of a new one."""
    if not (directory / MANIFEST_FILE).exists():
        if any(path.name != LOCK_FILE and path.suffix != ".tmp" for path in directory.iterdir()):
            raise ValueError(f"{directory}: not empty and not an index (no {MANIFEST_FILE})")
        manifest = Manifest(settings)
        manifest.save(directory)
        return manifest
    manifest = load_manifest(directory)
    different = manifest.differences(settings)
    if different:
        raise ValueError(f"{directory}: the index was begun with other settings: {'; '.join(different)}")
    manifest.verify(directory)
    return manifest


def _add_shards(
    directory: Path, manifest: Manifest, corpus: str | Path, source: _VectorSource | None, total: int, progress: bool
) -> Manifest:
    passages = itertools.islice(read_passages(corpus), manifest.passages, None)
    with tqdm(desc="index", unit=" passages", total=total, initial=manifest.passages, disable=not progress) as bar:
        for chunk in _chunks(passages):
            rows = {}
            if source is None:
                bar.update(len(chunk))
            else:
                vectors = source.vectors(chunk, manifest.passages, bar)
                rows = {"vectors": vectors}
                if manifest.settings.kind == "binary":
                    rows = {"bits": btr_kernels.pack_bits(torch.from_numpy(vectors)).numpy()}
            manifest = manifest.with_shard(write_shard(directory, len(manifest.shards), chunk, rows))
            manifest.save(directory)
    return manifest


def _chunks(passages: Iterator[Passage]) -> Iterator[list[Passage]]:
    while chunk := list(itertools.islice(passages, SHARD_PASSAGES)):
        yield chunk


def _save_bm25(retriever: Bm25Retriever, directory: Path) -> tuple[StoredFile, ...]:
    """Writes bm25s' files where only the manifest, written last, makes them count."""
    place = directory / _BM25
    shutil.rmtree(place, ignore_errors=True)
    try:
        retriever.save(place)
        entries = []
        for name in BM25_FILES:
            with (place / name).open("rb") as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            entries.append(StoredFile(f"{_BM25}/{name}", size, file_digest(place / name)))
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise OSError(error.errno, f"cannot write {place}: {error.strerror}; the passages are kept") from None
    return tuple(entries)


def open_index(
    directory: str | Path, *, encoder: str | Path | None = None, rerank: int = RERANKED, faiss: str | None = None
) -> Retriever:
    """Opens an index, mapped from disk, as the retriever of its kind.

    encoder: directory of the encoder that a dense or binary index was made with, for questions that come as texts.
    rerank, faiss: as in `BinaryRetriever` and `DenseRetriever`. Sizes and offsets of the files are checked, checksums
    by `build_index`. Raises `ValueError` for a damaged or unfinished index and for another encoder.

    >>> open_index("index/").retrieve(["who wrote hamlet"], 5)[0][0]["title"]  # doctest: +SKIP
    'Hamlet'
    """
    directory = Path(directory)
    manifest = load_manifest(directory)
    settings = manifest.settings
    if not manifest.complete:
        raise ValueError(f"{directory}: the index is incomplete: run the same btr index again to finish it")
    manifest.check_sizes(directory)
    passages = IndexedPassages(directory, manifest)
    if settings.kind == "bm25":
        if encoder is not None or faiss is not None:
            raise ValueError(f"{directory}: a bm25 index, which takes neither an encoder nor faiss")
        if {entry.file for entry in manifest.bm25} != {f"{_BM25}/{name}" for name in BM25_FILES}:
            raise ValueError(f"{directory / MANIFEST_FILE}: damaged manifest: bm25 must list {', '.join(BM25_FILES)}")
        return Bm25Retriever.load(directory / _BM25, passages, settings.stemmer)
    loaded = None if encoder is None else _index_encoder(encoder, settings, directory)
    options = {"encoder": loaded, "normalize": settings.similarity == "cosine", "faiss": faiss}
    parts = [shard.rows("vectors" if settings.kind == "dense" else "bits") for shard in passages.shards]
    if settings.kind == "dense":
        return DenseRetriever(passages, parts, **options)
    bits = torch.cat([torch.from_numpy(part) for part in parts])
    return BinaryRetriever(passages, bits, settings.channels, rerank=rerank, **options)


def _index_encoder(encoder: str | Path, settings: IndexSettings, directory: Path) -> TextEncoder:
    if not settings.encoder:
        raise ValueError(
            f"{directory}: the index was made of given vectors; pass the questions' vectors, not an encoder"
        )
    loaded = TextEncoder(encoder, settings.passage_length)
    if loaded.fingerprint() != settings.encoder:
        raise ValueError(f"{directory}: the index was made with another encoder than {encoder}")
    return loaded
