"""Writing a store shard by shard, so that a kill at any moment leaves a usable store that can be continued."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from .files import write_file
from .manifest import MANIFEST_FILE, Corpus, Manifest, StoreSettings, load_manifest
from .shard import EncodedPassage, pack_shard

_LOCK_FILE = ".lock"


class StoreWriter:
    """Appends shards to a store directory; one writer at a time.

    Opening an existing store continues it; with other settings than it was begun with, it is a `ValueError` that names
    them. With `append`, a complete store takes the passages of another file, whose digest is settings.corpus. A shard
    is complete when `add_shard` returns.

    >>> with StoreWriter("store/", settings) as writer:  # doctest: +SKIP
    ...     for chunk in chunked(passages[writer.done:], settings.shard_passages):
    ...         writer.add_shard(encode(chunk))
    ...     writer.finish()
    """

    def __init__(self, directory: str | Path, settings: StoreSettings, append: bool = False):
        self.directory = Path(directory)
        self._settings = settings
        self._append = append
        self._lock = None
        self._manifest = Manifest(settings)

    def __enter__(self) -> StoreWriter:
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{self.directory}: is a file; a store is a directory")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = (self.directory / _LOCK_FILE).open("w")
        try:
            self._acquire()
            self._open()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.directory}: another process is writing this store") from None

    def _open(self) -> None:
        if not (self.directory / MANIFEST_FILE).exists():
            if any(path.name != _LOCK_FILE and path.suffix != ".tmp" for path in self.directory.iterdir()):
                raise ValueError(f"{self.directory}: not empty and not a store (no {MANIFEST_FILE})")
            if self._append:
                raise ValueError(f"{self.directory}: there is no store to append to")
            self._manifest.save(self.directory)
            return
        found = load_manifest(self.directory)
        different = _differences(found.settings, self._settings)
        if different:
            raise ValueError(f"{self.directory}: the store was begun with other settings: {'; '.join(different)}")
        for shard in found.shards:
            shard.check_size(self.directory)
        for leftover in self.directory.glob("*.tmp"):
            leftover.unlink()
        self._manifest = found
        self._open_corpus()

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
                f"{self.directory}: complete: corpus is {present[-1]!r}, asked for {wanted!r}; append to add another"
            )
        manifest = replace(found, appended=(*found.appended, Corpus(wanted, len(found.shards))), complete=False)
        manifest.save(self.directory)
        self._manifest = manifest

    @property
    def done(self) -> int:
        """Passages of the corpus at hand that are in complete shards."""
        return sum(shard.passages for shard in self._manifest.shards[self._manifest.corpora[-1].first_shard :])

    @property
    def shard_passages(self) -> int:
        """Passages in every shard but the last."""
        return self._settings.shard_passages

    @property
    def complete(self) -> bool:
        """True once `finish` was called, now or in an earlier run."""
        return self._manifest.complete

    def add_shard(self, passages: Sequence[EncodedPassage]) -> None:
        """Writes the next shard and then the manifest that names it. Raises `OSError` where the disk is full."""
        name = f"shard-{len(self._manifest.shards):05d}.safetensors"
        content, shard = pack_shard(passages, self._settings, name)
        shard = replace(shard, **asdict(write_file(self.directory, name, content)))
        manifest = self._manifest.with_shard(shard)
        manifest.save(self.directory)
        self._manifest = manifest

    def finish(self) -> None:
        """Marks the store as complete."""
        manifest = replace(self._manifest, complete=True)
        manifest.save(self.directory)
        self._manifest = manifest


def _differences(found: StoreSettings, wanted: StoreSettings) -> list[str]:
    """What differs but for the corpus, of which a store may hold several."""
    old, new = asdict(replace(found, corpus=wanted.corpus)), asdict(wanted)
    return [f"{name} is {old[name]!r}, asked for {new[name]!r}" for name in old if old[name] != new[name]]
