"""Answering questions over a store, in Atlas' result format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .batches import PassageBatch, pad_passages, pad_queries
from .encoding import PassageReader, as_kept
from .engine import Form, ReaderEngine
from .passages import parse_passage
from .store import Store
from .tasks import Question


def form_of(store: Store | None) -> Form:
    """The form of the reader that a store is for: `btr` for bits, `deformer` for floats, `atlas` without a store."""
    if store is None:
        return "atlas"
    return "btr" if store.settings.kind == "binary" else "deformer"


def given_passages(question: Question) -> list[dict[str, Any]]:
    """The question's passages; `ValueError` where it has none and none were retrieved."""
    if question.passages is None:
        raise ValueError(
            f"question {question.id!r} comes without passages: list them in its field 'passages', or pass --index or "
            "--corpus to retrieve them"
        )
    return question.passages


def check_store(store: Store, reader: PassageReader) -> None:
    """Raises `ValueError` unless the store was encoded by this reader."""
    reader = as_kept(reader, store.settings.kind)
    if store.settings.cut != reader.settings:
        raise ValueError(
            f"{store.directory}: encoded at {store.settings.cut}, but the reader is cut at {reader.settings}"
        )
    if store.settings.reader != reader.fingerprint():
        raise ValueError(f"{store.directory}: encoded by another reader (other weights or tokenizer); encode again")
    reader.check_passage_length(store.settings.passage_length)


@dataclass
class Answerer:
    """Answers batches of questions and counts what it had to leave out.

    store: None only for the `atlas` form, which then reads the passages' texts given with the questions. With a store
    all forms read the token ids in it. text_length: tokens of query and passage together, for texts that come with
    the questions. passages: how many are read per question, None for all that are given.
    """

    engine: ReaderEngine
    store: Store | None
    max_new_tokens: int = 32
    passages: int | None = None
    text_length: int = 200
    skip_missing: bool = False
    missing_passages: int = field(default=0, init=False)
    unanswered: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.store is None and self.engine.form != "atlas":
            raise ValueError(f"the {self.engine.form} form needs a store")
        if self.store is not None and self.engine.form not in ("atlas", form_of(self.store)):
            raise ValueError(f"a {self.store.settings.kind} store cannot be read in the {self.engine.form} form")
        if self.passages is not None and self.passages < 1:
            raise ValueError(f"passages must be at least 1, got {self.passages}")

    def answer(self, questions: Iterable[Question], batch_size: int = 1) -> Iterator[dict[str, Any]]:
        """Yields one result per question, in order: query, answers, generation, passages, metadata, id, and
        choice_logits where the question has choices."""
        questions = iter(questions)
        while batch := list(itertools.islice(questions, batch_size)):
            yield from self._answer_batch(batch)

    def _answer_batch(self, questions: list[Question]) -> list[dict[str, Any]]:
        given = [self._passages(question) for question in questions]
        results: list[dict[str, Any]] = []
        readable = [index for index, passages in enumerate(given) if passages]
        replies = self._read([questions[i] for i in readable], [given[i] for i in readable]) if readable else []
        reply_of = dict(zip(readable, replies, strict=True))
        for index, question in enumerate(questions):
            result = {"query": question.query, "answers": question.answers, "generation": "", "passages": given[index]}
            result |= {"metadata": question.metadata, "id": question.id}
            if index in reply_of:
                result |= reply_of[index]
            else:
                self.unanswered += 1
            results.append(result)
        return results

    def _passages(self, question: Question) -> list[dict[str, Any]]:
        passages = given_passages(question)[: self.passages]
        if self.store is None:
            return passages
        present = [passage for passage in passages if passage["id"] in self.store]
        if len(present) < len(passages) and not self.skip_missing:
            absent = next(passage["id"] for passage in passages if passage["id"] not in self.store)
            raise ValueError(f"question {question.id!r}: passage {absent!r} is not in the store {self.store.directory}")
        self.missing_passages += len(passages) - len(present)
        return present

    def _read(self, questions: list[Question], given: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        tokenizer = self.engine.reader.tokenizer
        query_ids = [tokenizer.encode(question.query) for question in questions]
        query, passages = pad_queries(query_ids), self._fetch(questions, query_ids, given)
        if questions[0].choices:
            letters = questions[0].choices
            if any(question.choices != letters for question in questions):
                raise ValueError("questions of one batch must have the same choices: use a batch size of 1")
            choice_ids = [tokenizer.letter_id(letter) for letter in letters]
            logits = self.engine.choice_logits(query, passages, choice_ids).tolist()
            return [choice(dict(zip(letters, row, strict=True))) for row in logits]
        generated = self.engine.generate(query, passages, self.max_new_tokens)
        return [{"generation": tokenizer.decode(ids)} for ids in generated]

    def _fetch(
        self, questions: list[Question], query_ids: list[list[int]], given: list[list[dict[str, Any]]]
    ) -> PassageBatch:
        if self.store is None:
            return pad_passages(
                [
                    [self._text_ids(passage, question, len(ids)) for passage in passages]
                    for passages, question, ids in zip(given, questions, query_ids, strict=True)
                ]
            )
        wanted = [[passage["id"] for passage in passages] for passages in given]
        return self.engine.fetch(self.store, wanted)

    def _text_ids(self, passage: dict[str, Any], question: Question, query_length: int) -> list[int]:
        """A passage given as text, cut as Atlas cuts it: query and passage have `text_length` tokens together."""
        room = max(2, self.text_length - query_length)
        text = parse_passage(passage, f"question {question.id!r}").reader_text
        return self.engine.reader.tokenizer.encode_passage(text, room)


def choice(logits: dict[str, float]) -> dict[str, Any]:
    """The fields of a result whose answer is the choice with the greatest logit."""
    return {"generation": max(logits, key=logits.__getitem__), "choice_logits": logits}
