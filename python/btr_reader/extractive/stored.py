"""Answers of an extractive reader from a store, read back through the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..store import Store
from .examples import SpanBatch, SpanExample
from .forward import ExtractiveModel, SpanOutput


@torch.no_grad()
def spans_from_store(
    model: ExtractiveModel, store: Store, examples: Sequence[SpanExample], batch: SpanBatch
) -> SpanOutput:
    """The logits of a batch of these examples with their passages' states from a store.

    The store has to be of this reader as it is now (`check_store`). Raises `ValueError` for one of other texts or
    lengths, and for a passage that is not in it.
    """
    count = batch.passages.sizes.shape[1]
    names = [[passage.id for passage in example.passages[:count]] for example in examples]
    ids = batch.passages.content
    try:
        fetched = store.fetch(names).to(ids.device)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    if store.settings.original_ids and not torch.equal(store.fetch_tokens(names).content, ids.cpu()):
        raise ValueError(f"{store.directory}: holds other texts of these passages, or cut to another length")
    slots = None
    if store.settings.keep < 1:
        slots = _slots(store, names, ids.shape).to(ids.device)
        ids = ids.gather(2, fetched.positions.long())
    return model.from_store(batch.query, fetched, ids, slots, batch.allowed)


def _slots(store: Store, names: Sequence[Sequence[str]], shape: torch.Size) -> Tensor:
    """The kept token of every original one, int64 `(B * P, T)`, -1 for padding."""
    slots = torch.full(shape, -1)
    for number, row in enumerate(names):
        for place, name in enumerate(row):
            found = store.passage(name).slots
            slots[number, place, : len(found)] = found
    return slots.flatten(0, 1)
