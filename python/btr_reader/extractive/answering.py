"""Answering questions with an extractive reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ..answering import check_store
from ..metrics import best_f1, exact_match
from ..store import Store
from .examples import SpanBatches, SpanExample
from .forward import ExtractiveModel
from .spans import best_spans
from .stored import spans_from_store

#: Batches' worth of questions that are sorted by length together where answers come in the order of the questions: an
#: interruption loses as many at most.
POOL = 8


def answer_spans(
    model: ExtractiveModel, batches: SpanBatches, longest: int, store: Store | None = None
) -> Iterator[tuple[SpanExample, str]]:
    """Each of the questions with the text of its best span, questions of similar length one after the other.

    longest: tokens that an answer can have. store: where the passages' states come from; without one the whole form
    runs on the passages' tokens, as in training. Raises `ValueError` for a store of another reader.
    """
    if store is not None:
        check_store(store, model.reader)
    yield from _answers(model, batches, batches.alike(batches.examples), longest, store)


def answers_in_order(
    model: ExtractiveModel, batches: SpanBatches, longest: int, store: Store | None = None, done: int = 0
) -> Iterator[tuple[SpanExample, str]]:
    """The same in the order of the questions, from number `done` on, counted from 0.

    Whatever is done, a question is read in the batch that it is in from the start on, so that its answer is the same:
    padding to another length would round otherwise.
    """
    if store is not None:
        check_store(store, model.reader)
    size = POOL * batches.batch_size
    for start in range(done - done % size, len(batches.examples), size):
        pool = batches.examples[start : start + size]
        wanted = pool[max(0, done - start) :]
        names = {example.id for example in wanted}
        chunks = [chunk for chunk in batches.alike(pool) if any(example.id in names for example in chunk)]
        found = {example.id: text for example, text in _answers(model, batches, chunks, longest, store)}
        for example in wanted:
            yield example, found[example.id]


@torch.no_grad()
def _answers(
    model: ExtractiveModel,
    batches: SpanBatches,
    chunks: Iterable[list[SpanExample]],
    longest: int,
    store: Store | None,
) -> Iterator[tuple[SpanExample, str]]:
    model.eval()
    device = next(model.parameters()).device
    for chunk in chunks:
        batch = batches.batch(chunk).to(device)
        output = model(batch, 1.0, False) if store is None else spans_from_store(model, store, chunk, batch)
        spans = best_spans(output.start, output.end, longest).tolist()
        for example, (passage, first, last) in zip(chunk, spans, strict=True):
            found = example.passages[passage]
            yield example, batches.read(found).text(found, first, last)


def span_scores(
    model: ExtractiveModel, batches: SpanBatches, longest: int, store: Store | None = None
) -> dict[str, float]:
    """Exact match and F1 in percent over accepted answers, of what `answer_spans` gives."""
    answered = list(answer_spans(model, batches, longest, store))
    scores = {"exact_match": exact_match, "f1": best_f1}
    return {
        name: 100 * sum(score(answer, example.answers) for example, answer in answered) / len(answered)
        for name, score in scores.items()
    }
