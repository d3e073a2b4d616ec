"""Answering questions with an extractive reader."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..answering import check_store
from ..metrics import best_f1, exact_match
from ..store import Store
from .examples import SpanBatches, SpanExample
from .forward import ExtractiveModel
from .spans import best_spans
from .stored import spans_from_store


@torch.no_grad()
def answer_spans(
    model: ExtractiveModel, batches: SpanBatches, longest: int, store: Store | None = None
) -> Iterator[tuple[SpanExample, str]]:
    """Each of the questions with the text of its best span, questions of similar length one after the other.

    longest: tokens that an answer can have. store: where the passages' states come from; without one the whole form
    runs on the passages' tokens, as in training. Raises `ValueError` for a store of another reader.
    """
    if store is not None:
        check_store(store, model.reader)
    model.eval()
    device = next(model.parameters()).device
    for chunk in batches.all():
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
