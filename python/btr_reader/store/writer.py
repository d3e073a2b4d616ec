"""Writing a store shard by shard, so that a kill at any moment leaves a usable store that can be continued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ..files import LOCK_FILE, locked, write_file
from .code import BitCode, load_code
from .index import id_hashes, write_index
from .manifest import MANIFEST_FILE, CodebookFiles, Corpus, Manifest, StoreSettings, load_manifest
from .shard import EncodedPassage, ShardFile, pack_shard
from .tables import TABLES_FILE, TokenTables


class StoreWriter:
    """Appends shards to a store directory; one writer at a time.

    Opening an existing store continues it; with other settings than it was begun with, it is a `ValueError` that names
    them. With `append`, a complete store takes the passages of another file, whose digest is settings.corpus. A shard
    is complete when `add_shard` returns.

    tables: for a new store with masked bits; one that is there has its own. A store with a codebook gets it before its
    first shard (`set_codebook`).

    >>> with StoreWriter("store/", settings) as writer:  # doctest: +SKIP
    ...     for chunk in chunked(passages[writer.done:], settings.shard_passages):
    ...         writer.add_shard(encode(chunk))
    ...     writer.finish()
    """

    def __init__(
        self,
        directory: str | Path,
        settings: StoreSettings,
        append: bool = False,
        tables: TokenTables | None = None,
    ):
        if append and settings.codebook_bytes:
            raise ValueError("append: a codebook is made of a whole corpus: encode all passages into a new store")
        self.directory = Path(directory)
        self._settings = settings
        self._append = append
        self._tables = tables
        self._lock = ExitStack()
        self._manifest = Manifest(settings)
        self._code: BitCode | None = None

    def __enter__(self) -> StoreWriter:
        with ExitStack() as stack:
            stack.enter_context(locked(self.directory, "store"))
            if (self.directory / MANIFEST_FILE).exists():
                self._continue()
            else:
                self._begin()
            self._code = load_code(self.directory, self._manifest)
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def _begin(self) -> None:
        # Tables are written before the manifest: a kill may have left them, and they are written again.
        own = {LOCK_FILE, TABLES_FILE} if self._settings.masked_bits else {LOCK_FILE}
        if any(path.name not in own and path.suffix != ".tmp" for path in self.directory.iterdir()):
            raise ValueError(f"{self.directory}: not empty and not a store (no {MANIFEST_FILE})")
        if self._append:
            raise ValueError(f"{self.directory}: there is no store to append to")
        tables = None
        if self._settings.masked_bits:
            if self._tables is None or self._tables.stored_bits != self._settings.masked_bits:
                raise ValueError(f"tables: a new store needs tables of {self._settings.masked_bits} stored bits")
            tables = write_file(self.directory, TABLES_FILE, self._tables.serialise())
        self._save(Manifest(self._settings, tables=tables))

    def _continue(self) -> None:
        found = load_manifest(self.directory)
        different = _differences(found.settings, self._settings)
        if list(different) == ["codebook_bytes"] and self._settings.codebook_bytes and not self._codebook_begun(found):
            self._save(replace(found, settings=self._settings))  # a codebook of that size could not be made
            return
        if different:
            raise ValueError(
                f"{self.directory}: the store was begun with other settings: {'; '.join(different.values())}"
            )
        for entry in found.shards:
            entry.check_size(self.directory)
        for entry in found.side_files:
            entry.verify(self.directory)
        self._manifest = found
        self._remove_leftovers()
        self._open_corpus()

    def _codebook_begun(self, found: Manifest) -> bool:
        return found.codebook is not None or any(self.directory.glob("codebook-*.safetensors"))

    def _open_corpus(self) -> None:
        """Continues with the corpus that is being written, or begins to append another."""
        found, wanted = self._manifest, self._settings.corpus
        present = [corpus.sha256 for corpus in found.corpora]
        if wanted == present[-1] or (wanted in present and found.complete):
            return
        if not found.complete:
            raise ValueError(
                f"{self.directory}: incomplete: corpus is {present[-1]!r}, asked for {wanted!r}; finish that one first"
            )
        if not self._append:
            raise ValueError(
                f"{self.directory}: complete: corpus is {present[-1]!r}, asked for {wanted!r}; --append adds another"
            )
        self._save(
            replace(found, appended=(*found.appended, Corpus(wanted, len(found.shards))), complete=False, index=None)
        )

    def _save(self, manifest: Manifest) -> None:
        manifest.save(self.directory)
        self._manifest = manifest

    @property
    def done(self) -> int:
        """Passages of the corpus at hand that are in complete shards."""
        return sum(shard.passages for shard in self._manifest.shards[self._manifest.corpora[-1].first_shard :])

    @property
    def shards(self) -> int:
        """Number of complete shards, of all corpora."""
        return len(self._manifest.shards)

    @property
    def shard_passages(self) -> int:
        """Passages in every shard but the last."""
        return self._settings.shard_passages

    @property
    def complete(self) -> bool:
        """True once `finish` was called, now or in an earlier run."""
        return self._manifest.complete

    @property
    def codebook(self) -> CodebookFiles | None:
        """The codebook's files, None until they are set."""
        return self._manifest.codebook

    def set_codebook(self, files: CodebookFiles) -> None:
        """Names the files of the codebook, which stand in the directory already."""
        self._save(replace(self._manifest, codebook=files))
        self._code = load_code(self.directory, self._manifest)

    def add_shard(self, passages: Sequence[EncodedPassage]) -> None:
        """Writes the next shard and then the manifest that names it. Raises `OSError` where the disk is full."""
        name = f"shard-{self.shards:05d}.safetensors"
        content, shard = pack_shard(passages, self._manifest, name, self._code)
        shard = replace(shard, **asdict(write_file(self.directory, name, content)))
        self._save(self._manifest.with_shard(shard))

    def finish(self) -> None:
        """Writes the index of passages and marks the store as complete; `ValueError` for an id that occurs twice."""
        hashes = [id_hashes(ids) for ids in self._ids_by_shard()]
        self._check_unique(np.concatenate(hashes))
        self._save(replace(self._manifest, complete=True, index=write_index(self.directory, hashes)))

    def _ids_by_shard(self) -> Iterator[list[str]]:
        for shard in self._manifest.shards:
            yield ShardFile(self.directory, shard, self._manifest).passage_ids()

    def _check_unique(self, hashes: np.ndarray) -> None:
        """Only ids with equal hashes are compared: all of a large corpus would not fit into memory."""
        values, counts = np.unique(hashes, return_counts=True)
        repeated = set(values[counts > 1].tolist())
        if not repeated:
            return
        seen: set[str] = set()
        for ids in self._ids_by_shard():
            for passage_id, value in zip(ids, id_hashes(ids).tolist(), strict=True):
                if value in repeated:
                    if passage_id in seen:
                        raise ValueError(f"{self.directory}: passage id {passage_id!r} occurs twice")
                    seen.add(passage_id)

    def _remove_leftovers(self) -> None:
        """Removes what a kill left half written, and the index of before the store was appended to.

        That is left in place while appending: readers may have met the manifest that names it.
        """
        current = None if self._manifest.index is None else self._manifest.index.file
        for path in (*self.directory.glob("*.tmp"), *self.directory.glob("index-*.safetensors")):
            if path.name != current:
                path.unlink()


def _differences(found: StoreSettings, wanted: StoreSettings) -> dict[str, str]:
    """What differs, by name, but for the corpus, of which a store may hold several."""
    old, new = asdict(replace(found, corpus=wanted.corpus)), asdict(wanted)
    return {name: f"{name} is {old[name]!r}, asked for {new[name]!r}" for name in old if old[name] != new[name]}
