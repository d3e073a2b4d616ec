"""Stores of other settings, made of a store of plain bits: to compare them without encoding the corpus again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import btr_kernels

from .batches import pad_passages
from .codebooks import DEFAULT_MEMORY_BYTES, encode_with_codebook, plain_settings
from .offline_merging import offline_plan
from .store import EncodedPassage, Store, StoreSettings, StoreWriter
from .token_statistics import TokenStatistics

_POPCOUNT = torch.tensor([i.bit_count() for i in range(256)])


def recode_store(plain: Store, out: Path, settings: StoreSettings, statistics: TokenStatistics | None = None) -> Store:
    """The passages of a store of plain bits, with all tokens and their ids, in a new store with other settings.

    It is the store that `encode_corpus` would have made. statistics: needed for masked bits. A codebook is made by way
    of `OUT.merged`, which is left behind. Raises `ValueError` for settings that cannot be met.
    """
    if settings.codebook_bytes:
        if settings.keep < 1:
            plain = recode_store(plain, out.with_name(out.name + ".merged"), plain_settings(settings))
        with StoreWriter(out, settings) as writer:
            encode_with_codebook(plain, writer, settings, DEFAULT_MEMORY_BYTES, progress=False)
        return Store(out)
    tables = statistics.tables(settings.masked_bits) if settings.masked_bits else None
    ids = plain.passage_ids()
    with StoreWriter(out, settings, tables=tables) as writer:
        for chunk in chunks(ids, settings.shard_passages):
            passages = [plain.passage(passage_id) for passage_id in chunk]
            writer.add_shard([merged for batch in chunks(passages, 32) for merged in _merged(batch, settings)])
        writer.finish()
    return Store(out)


def _merged(passages: Sequence[EncodedPassage], settings: StoreSettings) -> list[EncodedPassage]:
    """Plain passages as `PassageEncoder` would have encoded them with these settings."""
    if settings.keep == 1:
        return list(passages)
    batch = pad_passages([[passage.token_ids for passage in passages]])
    lengths = batch.sizes[0].sum(1)
    bits = torch.zeros(*batch.sizes[0].shape, settings.row_width, dtype=torch.uint8)
    for row, passage in enumerate(passages):
        bits[row, : len(passage.states)] = passage.states
    plan = offline_plan(bits, batch.content[0], lengths, settings.keep, settings.same_id_first)
    merged, _ = btr_kernels.merge_bits(bits, plan)
    return [
        replace(passage, states=merged[row, : plan.lengths[row]], slots=plan.slot[row, : lengths[row]])
        for row, passage in enumerate(passages)
    ]


def flipped_share(plain: Store, store: Store) -> float:
    """The share of bits that a store gives back other than the plain one does, over all original tokens."""
    flipped = tokens = 0
    for batch in chunks(plain.passage_ids(), 256):
        expected, found = plain.fetch([batch]), store.fetch([batch])
        for number, passage_id in enumerate(batch):
            length = int(expected.sizes[0, number].sum())
            slots = store.passage(passage_id).slots
            rows = found.content[0, number, :length] if slots is None else found.content[0, number, slots]
            flipped += int(_POPCOUNT[(rows ^ expected.content[0, number, :length]).long()].sum())
            tokens += length
    return flipped / (tokens * plain.settings.channels)


def statistics_of(plain: Store) -> TokenStatistics:
    """The statistics of the tokens in a store of plain bits."""
    statistics = TokenStatistics.empty(plain.settings.vocabulary, plain.settings.channels)
    for batch in chunks(plain.passage_ids(), 256):
        passages = [plain.passage(passage_id) for passage_id in batch]
        statistics.add(torch.cat([p.states for p in passages]), torch.cat([p.token_ids for p in passages]))
    return statistics


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
