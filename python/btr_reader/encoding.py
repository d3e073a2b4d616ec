"""The offline part: passages through the lower layers, binarized, merged, into a store; and the calibration of rho."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

import btr_kernels

from .batches import pad_passages
from .codebooks import DEFAULT_MEMORY_BYTES, WORK_DIRECTORY, encode_with_codebook, plain_settings
from .digests import file_digest
from .offline_merging import offline_plan
from .passages import Passage, read_passages
from .settings import ReaderSettings
from .shares import check_keep
from .sign_code import SignCode
from .store import (
    MANIFEST_FILE,
    MAX_ID_BYTES,
    MAX_PASSAGE_LENGTH,
    EncodedPassage,
    Kind,
    Store,
    StoreSettings,
    StoreWriter,
    TokenTables,
)

# Passages used to measure rho: a mean over some ten thousands of tokens moves by less than a percent with more.
CALIBRATION_PASSAGES = 256

R = TypeVar("R", bound="PassageReader")


class PassageReader(Protocol):
    """What passages are encoded by: a `Reader` or an `ExtractiveReader`."""

    tokenizer: Any
    settings: ReaderSettings
    code: SignCode | None

    @property
    def channels(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def passage_states(self, ids: Tensor, sizes: Tensor) -> Tensor: ...

    def fingerprint(self) -> str: ...

    def check_passage_length(self, length: int) -> None: ...


class PassageEncoder:
    """Encodes batches of passages as a reader's store keeps them.

    A code of the reader (`SignCode`) says what bits are of, and which of them are stored; float states need none.

    kind: `binary`, `float32` or `float16`; keep: share of a passage's tokens kept; passage_length: tokens a passage is
    cut to, end token included; same_id_first: tokens of one vocabulary id are merged before others (`offline_plan`).
    masked_bits, codebook_bytes, original_ids: what a store keeps of it (`StoreSettings`). Raises `ValueError` for
    values out of range, and for masked bits other than those of the reader's code.
    """

    def __init__(
        self,
        reader: PassageReader,
        kind: Kind = "binary",
        keep: float = 1.0,
        passage_length: int = 200,
        *,
        same_id_first: bool = False,
        masked_bits: int = 0,
        codebook_bytes: float = 0.0,
        original_ids: bool = True,
    ):
        check_keep("keep", keep)
        if not 2 <= passage_length <= MAX_PASSAGE_LENGTH:
            raise ValueError(f"passage_length must be in 2..{MAX_PASSAGE_LENGTH}, got {passage_length}")
        reader = as_kept(reader, kind)
        reader.check_passage_length(passage_length)
        if reader.code is not None:
            if masked_bits not in (0, reader.code.stored_bits):
                raise ValueError(
                    f"masked_bits: the reader's code stores {reader.code.stored_bits or 'all'} of {reader.channels} "
                    f"bits, got {masked_bits}"
                )
            masked_bits = reader.code.stored_bits
            if masked_bits and codebook_bytes:
                raise ValueError(
                    f"codebook_bytes: the reader was trained to store {masked_bits} of its bits, a codebook shares "
                    "vectors of all: train it without masked_bits"
                )
            if not (original_ids or masked_bits or codebook_bytes):
                raise ValueError("original_ids: the reader's code restores bits by the tokens' ids: keep them")
        self._settings = StoreSettings(
            reader="",
            corpus="",
            vocabulary=reader.tokenizer.vocabulary_size,
            channels=reader.channels,
            cut=reader.settings,
            kind=kind,
            keep=float(keep),
            same_id_first=same_id_first,
            masked_bits=masked_bits,
            codebook_bytes=float(codebook_bytes),
            original_ids=original_ids,
            passage_length=passage_length,
            shard_passages=1,
        )
        self.reader = reader
        self.kind = kind
        self.keep = float(keep)
        self.passage_length = passage_length
        self.same_id_first = same_id_first

    @property
    def tables(self) -> TokenTables | None:
        """The tables of a new store, of a reader whose code masks bits."""
        return None if self.reader.code is None else self.reader.code.tables()

    def store_settings(self, corpus: str, shard_passages: int) -> StoreSettings:
        """The settings of a store that this encoder fills; corpus: its fingerprint."""
        return replace(self._settings, reader=self.reader.fingerprint(), corpus=corpus, shard_passages=shard_passages)

    def states(self, passages: Sequence[Passage]) -> tuple[list[list[int]], Tensor, Tensor]:
        """Token ids of n passages, their float states at the cut `(n, T, d)`, and sizes `(n, T)`, 0 for padding.

        States and sizes are on the reader's device.
        """
        ids = [self.reader.tokenizer.encode_passage(p.reader_text, self.passage_length) for p in passages]
        batch = pad_passages([ids]).to(self.reader.device)
        states = self.reader.passage_states(batch.content[0], batch.sizes[0])
        return ids, states, batch.sizes[0]

    def batches(self, passages: Sequence[Passage], batch_size: int = 32) -> Iterator[list[tuple[int, EncodedPassage]]]:
        """Encodes passages in batches of similar length: yields `(index in passages, encoded)` batch by batch."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = sorted(range(len(passages)), key=lambda i: len(passages[i].reader_text))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield list(zip(rows, self._encode_batch([passages[i] for i in rows]), strict=True))

    @torch.inference_mode()
    def _encode_batch(self, passages: Sequence[Passage]) -> list[EncodedPassage]:
        ids, states, sizes = self.states(passages)
        lengths = sizes.sum(1).cpu()
        kept, slots = lengths, None
        if self.keep < 1 or self.kind == "binary":
            bits = btr_kernels.pack_bits(states).cpu()
        if self.kind != "binary":
            states = states.float().cpu()
        if self.keep < 1:
            plan = offline_plan(bits, pad_passages([ids]).content[0], lengths, self.keep, self.same_id_first)
            kept, slots = plan.lengths, plan.slot
            if self.kind == "binary":
                bits, _ = btr_kernels.merge_bits(bits, plan)
            else:
                states, _ = btr_kernels.merge_tokens(states, plan)
        content = bits if self.kind == "binary" else states
        return [
            EncodedPassage(
                id=passage.id,
                states=content[row, : kept[row]],
                token_ids=ids[row],
                slots=None if slots is None else slots[row, : lengths[row]],
            )
            for row, passage in enumerate(passages)
        ]


def as_kept(reader: R, kind: Kind) -> R:
    """The reader as stores of this kind are made with it: float states are kept as they are, whatever its code."""
    return reader if kind == "binary" or reader.code is None else replace(reader, code=None)


def encode_corpus(
    encoder: PassageEncoder,
    corpus: str | Path,
    out: str | Path,
    *,
    shard_passages: int = 1024,
    batch_size: int = 32,
    append: bool = False,
    tables: TokenTables | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: bool = True,
) -> int:
    """Encodes a JSON-lines corpus into a store and returns how many passages this call added.

    Continues after the last complete shard of an interrupted run; the result is the same, to the byte, as without the
    interruption. append: adds the corpus to a complete store of another one; passage ids must differ. tables: for a new
    store with masked bits (`TokenStatistics.tables`), where they are not those of the reader's code. memory_bytes: for
    making a codebook, besides what encoding takes.
    Raises `ValueError` for a store begun with other settings, naming them, and for passages that do not fit into it.
    """
    settings = encoder.store_settings(file_digest(corpus), shard_passages)
    tables = encoder.tables if tables is None else tables
    # The whole file is checked first: a malformed line must not come up after hours, when mending it would change the
    # corpus that the store was begun with.
    total = _check_corpus(corpus, out if append else None, settings.corpus)
    with StoreWriter(out, settings, append, tables) as writer:
        if not writer.complete and settings.codebook_bytes:
            work = Path(out) / WORK_DIRECTORY
            with StoreWriter(work, plain_settings(settings)) as plain:
                _fill(encoder, corpus, plain, total, batch_size, progress)
            added = encode_with_codebook(Store(work), writer, settings, memory_bytes, progress)
        else:
            added = _fill(encoder, corpus, writer, total, batch_size, progress)
        if settings.codebook_bytes:
            shutil.rmtree(Path(out) / WORK_DIRECTORY, ignore_errors=True)
        return added


def _fill(
    encoder: PassageEncoder, corpus: str | Path, writer: StoreWriter, total: int, batch_size: int, progress: bool
) -> int:
    """Encodes what is not in the store yet, and returns how many passages that was."""
    if writer.complete:
        return 0
    passages = itertools.islice(read_passages(corpus), writer.done, None)
    with tqdm(desc="encode", unit=" passages", total=total, initial=writer.done, disable=not progress) as bar:
        return fill_store(encoder, passages, writer, batch_size, bar)


def _check_corpus(corpus: str | Path, store: str | Path | None, digest: str) -> int:
    """The number of passages; `ValueError` where one is malformed, or is in a store that it is to be appended to."""
    present: frozenset[str] = frozenset()
    if store is not None and (Path(store) / MANIFEST_FILE).is_file():
        store = Store(store)
        if digest not in (known.sha256 for known in store.manifest.corpora):
            present = frozenset(store.passage_ids())
    total = 0
    for passage in read_passages(corpus):
        total += 1
        if passage.id in present:
            raise ValueError(f"{corpus}: passage id {passage.id!r} is in the store {store.directory} already")
        if len(passage.id.encode()) > MAX_ID_BYTES:
            raise ValueError(f"{corpus}: passage id {passage.id[:40]!r}... is longer than {MAX_ID_BYTES} bytes")
    return total


def fill_store(
    encoder: PassageEncoder, passages: Iterable[Passage], writer: StoreWriter, batch_size: int, bar: tqdm
) -> int:
    """Encodes passages shard by shard into an open store, marks it complete, and returns how many there were."""
    added = 0
    passages = iter(passages)
    while chunk := list(itertools.islice(passages, writer.shard_passages)):
        encoded = []
        for batch in encoder.batches(chunk, batch_size):
            encoded += batch
            bar.update(len(batch))
        encoded.sort(key=lambda numbered: numbered[0])
        writer.add_shard([passage for _, passage in encoded])
        added += len(chunk)
    writer.finish()
    return added


@torch.no_grad()
def calibrate_residual_scale(
    reader: PassageReader,
    passages: Iterable[Passage],
    passage_length: int = 200,
    observe: Callable[[list[list[int]], Tensor], object] | None = None,
) -> Tensor:
    """rho, float32 `(d,)`: the mean magnitude of every channel of the states at the reader's cut.

    Of all single scales it is the one that restores the states with the least squared error. observe: is given the
    token ids of every batch of passages and their states `(tokens, d)`. Raises `ValueError` where there are none.
    """
    encoder = PassageEncoder(reader, passage_length=passage_length)
    remaining = iter(passages)
    batches = iter(lambda: list(itertools.islice(remaining, 32)), [])
    first = next(batches, None)
    if first is None:
        raise ValueError("passages: calibration needs at least one passage")

    def tokens() -> Iterator[Tensor]:
        for batch in itertools.chain([first], batches):
            ids, states, sizes = encoder.states(batch)
            states = states[sizes > 0]
            if observe is not None:
                observe(ids, states)
            yield states

    return btr_kernels.calibrate_scale(tokens())
