"""What all retrievers share: a corpus, questions in, passages with scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..passages import Passage

# (position in the corpus, score) of the passages found, best first.
Ranking = list[tuple[int, float]]


class Retriever(ABC):
    """Finds the passages of a corpus for questions; equal scores are in the order of the corpus.

    passages: the corpus, in the order that rankings count in.
    """

    def __init__(self, passages: Sequence[Passage]):
        if len(passages) == 0:
            raise ValueError("passages: there must be at least one to retrieve")
        self.passages = passages

    @abstractmethod
    def rank(self, questions: Sequence[str] | np.ndarray, k: int) -> list[Ranking]:
        """For each question the k best passages, fewer where the corpus has no more: `(position, score)`, best first.

        questions: their texts, or (dense and binary) their vectors, float32 `(m, d)`.
        """

    def retrieve(self, questions: Sequence[str] | np.ndarray, k: int) -> list[list[dict[str, Any]]]:
        """For each question the k best passages as Atlas lists them: `[{"id", "title", "text", "score"}]`, best first.

        Raises `ValueError` for k below 1.

        >>> retriever = Bm25Retriever(list(read_passages("passages.jsonl")))  # doctest: +SKIP
        >>> retriever.retrieve(["who wrote hamlet"], 5)[0][0]["title"]  # doctest: +SKIP
        'Hamlet'
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        rankings = self.rank(questions, min(k, len(self.passages)))
        return [[self._record(position, score) for position, score in ranking] for ranking in rankings]

    def _record(self, position: int, score: float) -> dict[str, Any]:
        passage = self.passages[position]
        return {"id": passage.id, "title": passage.title, "text": passage.text, "score": score}


def best(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest of scores `(n,)`, best first; ties to the lowest position, which topk leaves open."""
    if k >= len(scores):
        return scores.argsort(descending=True, stable=True)
    candidates = (scores >= scores.topk(k).values[-1]).nonzero()[:, 0]
    return candidates[scores[candidates].argsort(descending=True, stable=True)[:k]]


def ranking(positions: Tensor, scores: Tensor) -> Ranking:
    """Both `(n,)`, as a list of pairs."""
    return list(zip(positions.tolist(), scores.to(torch.float64).tolist(), strict=True))
