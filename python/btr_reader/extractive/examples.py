"""Questions of an extractive reader, and batches of them."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..batches import PassageBatch, QueryBatch, pad_passages, pad_queries
from ..passages import Passage, parse_passage
from ..tasks import read_questions
from .tokenizer import SpanTokenizer


@dataclass(frozen=True)
class SpanExample:
    """A question, its accepted answers and its passages; `id` is unique in its file."""

    id: str
    question: str
    answers: list[str]
    passages: list[Passage]


@dataclass(frozen=True, eq=False)
class SpanBatch:
    """Questions to train on or to answer.

    query: B queries. passages: token ids `(B, P, T)`. allowed: bool `(B, P, T)`, tokens of the passages' texts, which
    answers consist of. spans: int64 `(B, S, 2)`, where answers stand (see `span_loss`). ids: of the questions.
    """

    query: QueryBatch
    passages: PassageBatch
    allowed: Tensor
    spans: Tensor
    ids: tuple[str, ...]

    @property
    def questions(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Passage tokens, padding not counted."""
        return int((self.passages.sizes > 0).sum())

    def to(self, device: torch.device | str) -> SpanBatch:
        moved = (part.to(device) for part in (self.query, self.passages, self.allowed, self.spans))
        return SpanBatch(*moved, self.ids)


def read_span_examples(path: str | Path) -> list[SpanExample]:
    """The questions of a file in Atlas' format of natural questions, which must come with their passages' texts.

    Raises `ValueError` naming the question that lacks answers or passages, or an id that occurs twice.
    """
    examples, seen = [], set()
    for question in read_questions(path, "nq"):
        where = f"{path}: question {question.id!r}"
        if not question.answers or not question.passages:
            raise ValueError(f"{where} has no {'passages' if question.answers else 'answers'}")
        if question.id in seen:
            raise ValueError(f"{where} occurs twice")
        seen.add(question.id)
        passages = [parse_passage(record, where) for record in question.passages]
        examples.append(SpanExample(question.id, question.metadata["question"], question.answers, passages))
    return examples


@dataclass(frozen=True)
class ReadPassage:
    """A passage's token ids, where in its `reader_text` each but the last stands, and the first that is of its text."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    first: int

    @classmethod
    def of(cls, passage: Passage, tokenizer: SpanTokenizer, length: int) -> ReadPassage:
        ids, offsets = tokenizer.encode_with_offsets(passage.reader_text, length)
        begins = len(passage.reader_text) - len(passage.text)
        return cls(ids, offsets, bisect_left(offsets, (begins, 0)))

    def spans(self, passage: Passage, answers: Sequence[str]) -> list[tuple[int, int]]:
        """First and last token of every place where an answer stands as whole words, upper and lower case alike."""
        begins = len(passage.reader_text) - len(passage.text)
        starts = {start: token for token, (start, _) in enumerate(self.offsets) if token >= self.first}
        ends = {end: token for token, (_, end) in enumerate(self.offsets) if token >= self.first}
        found = set()
        for answer in filter(None, map(str.strip, answers)):
            for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", passage.text, re.IGNORECASE):
                start, end = starts.get(begins + match.start()), ends.get(begins + match.end())
                if start is not None and end is not None:
                    found.add((start, end))
        return sorted(found)

    def text(self, passage: Passage, first: int, last: int) -> str:
        return passage.reader_text[self.offsets[first][0] : self.offsets[last][1]]


class SpanBatches:
    """Batches by number: the same number is always the same batch, so that a run can be continued.

    Every epoch has an order of its own, in which questions of similar length share a batch. Questions without an
    answer in what is read of their passages are left out in training.
    """

    #: Batches' worth of questions that are sorted by length together.
    POOL = 32

    def __init__(
        self, examples: Sequence[SpanExample], tokenizer: SpanTokenizer, *, batch_size: int, passages: int,
        passage_length: int, query_length: int, seed: int = 0,
    ):  # fmt: skip
        self.tokenizer, self.batch_size, self.passages = tokenizer, batch_size, passages
        self.passage_length, self.query_length, self.seed = passage_length, query_length, seed
        # By what is in it: questions may number their passages each for itself.
        self._read: dict[Passage, ReadPassage] = {}
        self.examples = list(examples)
        self.trainable = [example for example in self.examples if any(map(len, self._spans(example)))]
        self._epoch, self._order = -1, []

    def __len__(self) -> int:
        """Batches of an epoch of training."""
        return -(-len(self.trainable) // self.batch_size)

    def read(self, passage: Passage) -> ReadPassage:
        if passage not in self._read:
            self._read[passage] = ReadPassage.of(passage, self.tokenizer, self.passage_length)
        return self._read[passage]

    def _spans(self, example: SpanExample) -> list[list[tuple[int, int]]]:
        return [self.read(p).spans(p, example.answers) for p in example.passages[: self.passages]]

    def longest(self, example: SpanExample) -> int:
        return max(len(self.read(passage).ids) for passage in example.passages[: self.passages])

    def __getitem__(self, number: int) -> SpanBatch:
        """Batch `number` of training, counted from 0 over all epochs."""
        if not self.trainable:
            raise ValueError("examples: there is none to train on")
        epoch, place = divmod(number, len(self))
        if epoch != self._epoch:
            self._order, self._epoch = self._in_order(random.Random(f"{self.seed} {epoch}")), epoch
        return self.batch(self._order[place])

    def _in_order(self, chance: random.Random) -> list[list[SpanExample]]:
        shuffled = chance.sample(self.trainable, len(self.trainable))
        pool = self.POOL * self.batch_size
        batches = []
        for start in range(0, len(shuffled), pool):
            batches += self.alike(shuffled[start : start + pool])
        return chance.sample(batches, len(batches))

    def alike(self, examples: Sequence[SpanExample]) -> list[list[SpanExample]]:
        """These questions once, in batches of similar length, the longest first."""
        ordered = sorted(examples, key=self.longest, reverse=True)
        return [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]

    def batch(self, examples: Sequence[SpanExample]) -> SpanBatch:
        queries = pad_queries([self.tokenizer.encode_question(e.question, self.query_length) for e in examples])
        read = [[self.read(passage) for passage in example.passages[: self.passages]] for example in examples]
        passages = pad_passages([[passage.ids for passage in row] for row in read])
        width = passages.sizes.shape[-1]
        allowed = torch.zeros(passages.sizes.shape, dtype=torch.bool)
        spans = []
        for number, (row, example) in enumerate(zip(read, examples, strict=True)):
            for place, passage in enumerate(row):
                allowed[number, place, passage.first : len(passage.offsets)] = True
            spans.append(
                [(p * width + s, p * width + e) for p, found in enumerate(self._spans(example)) for s, e in found]
            )
        padded = torch.full((len(spans), max(1, *map(len, spans)), 2), -1)
        for number, row in enumerate(spans):
            padded[number, : len(row)] = torch.tensor(row).reshape(-1, 2)
        return SpanBatch(queries, passages, allowed, padded, tuple(example.id for example in examples))
