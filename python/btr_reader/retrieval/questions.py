"""Questions and the passages that are retrieved for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..jsonl import read_jsonl
from ..tasks import Question, passage_records, search_text
from .retriever import Retriever

# Questions that are ranked together: a dense search reads its vectors once for all of them.
QUESTIONS_AT_ONCE = 64

When = Literal["missing", "always", "more"]


def with_passages(
    questions: Iterable[Question], retriever: Retriever, k: int, when: When = "missing"
) -> Iterator[Question]:
    """The questions, in order, with passages retrieved for them.

    when: `missing`, for the questions that bring none; `always`, in place of those they bring; `more`, after those they
    bring, up to k in all. A question for which nothing is found gets an empty list.

    >>> for question in with_passages(read_questions("q.jsonl", "nq"), retriever, 40):  # doctest: +SKIP
    ...     print(question.id, [passage["id"] for passage in question.passages])
    """
    _check_when(when)
    questions = iter(questions)
    while chunk := list(itertools.islice(questions, QUESTIONS_AT_ONCE)):
        asked = [question for question in chunk if _asks(question.passages, when)]
        # The orders in which a multiple-choice question is asked have one text.
        texts = list(dict.fromkeys(search_text(question.metadata, f"question {question.id!r}") for question in asked))
        found = dict(zip(texts, retriever.retrieve(texts, k), strict=True)) if texts else {}
        for question in chunk:
            if _asks(question.passages, when):
                retrieved = found[search_text(question.metadata, f"question {question.id!r}")]
                question = replace(question, passages=_joined(question.passages, retrieved, k, when))
            yield question


def fill_passages(
    questions: str | Path,
    retriever: Retriever,
    k: int,
    when: When = "always",
    *,
    vectors: np.ndarray | None = None,
    start: int = 0,
) -> Iterator[dict[str, Any]]:
    """The rows of a questions file from number `start` on, of any task, with the field `passages` filled.

    when: as in `with_passages`. vectors: `(m, d)` of the questions in the order of the file, in place of their texts.
    Raises `ValueError` naming the line that has no question, or for vectors that do not fit the file.
    """
    _check_when(when)
    rows = list(read_jsonl(questions))
    if vectors is not None and len(vectors) != len(rows):
        raise ValueError(f"{questions}: {len(rows)} questions, but {len(vectors)} vectors")
    for first in range(start, len(rows), QUESTIONS_AT_ONCE):
        chunk = rows[first : first + QUESTIONS_AT_ONCE]
        given = [passage_records(record, where) for where, record in chunk]
        asked = [number for number, passages in enumerate(given) if _asks(passages, when)]
        texts = [search_text(record, where) for where, record in chunk]
        wanted: Sequence[str] | np.ndarray = [texts[number] for number in asked]
        if vectors is not None:
            wanted = vectors[first : first + len(chunk)][asked]
        found = dict(zip(asked, retriever.retrieve(wanted, k), strict=True)) if asked else {}
        for number, (_, record) in enumerate(chunk):
            passages = given[number]
            if number in found:
                passages = _joined(passages, found[number], k, when)
            yield {**record, "passages": passages}


def recall(given: Sequence[Sequence[str]], found: Sequence[Sequence[str]], ks: Iterable[int]) -> dict[int, float]:
    """For each k the share of questions that have one of their given passages among the first k found.

    given, found: passage ids of each question; questions without given ones do not count.

    >>> recall([["a"], ["b"], []], [["a", "b"], ["c", "b"], ["a"]], [1, 2])
    {1: 0.5, 2: 1.0}
    """
    pairs = [(set(ids), list(ranked)) for ids, ranked in zip(given, found, strict=True) if ids]
    if not pairs:
        return {}
    return {k: sum(not ids.isdisjoint(ranked[:k]) for ids, ranked in pairs) / len(pairs) for k in ks}


def _check_when(when: str) -> None:
    if when not in get_args(When):
        raise ValueError(f"when must be one of {', '.join(get_args(When))}, got {when!r}")


def _asks(passages: list[dict[str, Any]] | None, when: When) -> bool:
    return when != "missing" or not passages


def _joined(
    given: list[dict[str, Any]] | None, found: list[dict[str, Any]], k: int, when: When
) -> list[dict[str, Any]]:
    if when != "more" or not given:
        return found
    present = {passage["id"] for passage in given}
    return (given + [passage for passage in found if passage["id"] not in present])[:k]
