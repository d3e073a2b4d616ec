"""Stores of random passages, without a reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from btr_reader.settings import ReaderSettings
from btr_reader.store import EncodedPassage, StoreSettings, StoreWriter, TokenTables

PLAIN = StoreSettings(
    reader="r",
    corpus="c",
    vocabulary=90,
    channels=20,
    cut=ReaderSettings(2),
    kind="binary",
    keep=1.0,
    same_id_first=False,
    masked_bits=0,
    codebook_bytes=0.0,
    original_ids=True,
    passage_length=30,
    shard_passages=4,
)


def random_passages(wanted: StoreSettings, count: int, seed: int = 0) -> list[EncodedPassage]:
    random = np.random.default_rng(seed)
    passages = []
    for number in range(count):
        length = int(random.integers(1, wanted.passage_length + 1))
        kept = length if wanted.keep == 1 else max(1, round(length * wanted.keep))
        signs = random.standard_normal((kept, wanted.channels)).astype(np.float32)
        states = np.packbits(signs >= 0, axis=-1, bitorder="little") if wanted.kind == "binary" else signs
        # Every kept token needs an original one.
        slots = random.permutation(np.concatenate([np.arange(kept), random.integers(0, kept, length - kept)]))
        passages.append(
            EncodedPassage(
                f"é{seed}-{number}",
                torch.from_numpy(states.astype(np.float16) if wanted.kind == "float16" else states),
                random.integers(0, wanted.vocabulary, length).tolist(),
                None if wanted.keep == 1 else torch.from_numpy(slots),
            )
        )
    return passages


def random_tables(wanted: StoreSettings) -> TokenTables | None:
    if not wanted.masked_bits:
        return None
    random = np.random.default_rng(1)
    order = random.random((wanted.vocabulary, wanted.channels)).argsort(1)
    majority = random.integers(0, 2, order.shape)
    packed = [np.packbits(values, axis=1, bitorder="little") for values in (order < wanted.masked_bits, majority)]
    return TokenTables(*packed, wanted.masked_bits)


def restored(passage: EncodedPassage, wanted: StoreSettings) -> torch.Tensor:
    """The passage's states as the store gives them back: masked bits are those of the earliest token's id."""
    tables = random_tables(wanted)
    if tables is None:
        return passage.states
    slots = range(len(passage.token_ids)) if passage.slots is None else passage.slots.tolist()
    ids = [passage.token_ids[list(slots).index(row)] for row in range(len(passage.states))]
    mask, majority = (torch.from_numpy(table)[ids] for table in (tables.mask, tables.majority))
    return (passage.states & mask) | (majority & ~mask)


def write(directory: Path, wanted: StoreSettings, passages: list[EncodedPassage]) -> None:
    with StoreWriter(directory, wanted, tables=random_tables(wanted)) as writer:
        for first in range(writer.done, len(passages), wanted.shard_passages):
            writer.add_shard(passages[first : first + wanted.shard_passages])
        if not writer.complete:
            writer.finish()
