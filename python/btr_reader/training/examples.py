"""Questions with passages and answers as batches to train on, in an order that can be taken up anywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..batches import pad_passages, pad_queries
from ..passages import Passage, parse_passage
from ..tasks import SENTINEL, Permutations, TaskName, read_questions
from ..tokenizer import EOS, PAD, ReaderTokenizer
from .forward import Batch
from .settings import TrainingSettings


@dataclass(frozen=True)
class Example:
    """A question's prompt, the accepted answers, and its passages; its choices and metadata as in `Question`."""

    query: str
    answers: list[str]
    passages: list[Passage]
    choices: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def read_examples(
    path: str | Path, task: TaskName, tokenizer: ReaderTokenizer, permutations: Permutations = "none"
) -> list[Example]:
    """The questions of a file in Atlas' format of the task, which must come with answers and passages' texts.

    permutations: orders in which the options of multiple-choice questions are asked, each an example. Raises
    `ValueError` naming the question that lacks either.
    """
    examples = []
    for question in read_questions(path, task, tokenizer, permutations):
        where = f"{path}: question {question.id!r}"
        if not question.answers:
            raise ValueError(f"{where} has no answers to train on")
        if not question.passages:
            raise ValueError(f"{where} has no passages: give them in its field 'passages' (see btr retrieve)")
        passages = [parse_passage(record, where) for record in question.passages]
        examples.append(Example(question.query, question.answers, passages, question.choices, question.metadata))
    return examples


class Batches:
    """Batches by number: the same number is always the same batch, so that a run can be continued.

    Every epoch has an order of its own; of several accepted answers one is taken by chance.
    """

    def __init__(self, examples: Sequence[Example], tokenizer: ReaderTokenizer, settings: TrainingSettings):
        if not examples:
            raise ValueError("examples: there are none to train on")
        self.examples = examples
        self.tokenizer = tokenizer
        self.settings = settings
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, number: int) -> Batch:
        """Batch `number`, counted from 0 over all epochs; the last of an epoch goes on into the next."""
        size = self.settings.batch_size
        return self.batch([self._example(number * size + i) for i in range(size)])

    def _example(self, place: int) -> Example:
        epoch, index = divmod(place, len(self.examples))
        if epoch != self._epoch:
            self._order = list(range(len(self.examples)))
            random.Random(f"{self.settings.seed} {epoch}").shuffle(self._order)
            self._epoch = epoch
        example = self.examples[self._order[index]]
        answer = random.Random(f"{self.settings.seed} {place}").choice(example.answers)
        return replace(example, answers=[answer])

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Token ids of examples, the first answer of each as the target: sentinel, answer, end token."""
        tokenizer, settings = self.tokenizer, self.settings
        queries = pad_queries([tokenizer.encode(example.query) for example in examples])
        passages = pad_passages(
            [
                [
                    tokenizer.encode_passage(passage.reader_text, settings.passage_length)
                    for passage in example.passages[: settings.passages]
                ]
                for example in examples
            ]
        )
        targets = [self._target(example.answers[0]) for example in examples]
        width = max(map(len, targets))
        padded = torch.tensor([target + [PAD] * (width - len(target)) for target in targets])
        return Batch(queries, passages, padded)

    def _target(self, answer: str) -> list[int]:
        ids = self.tokenizer.encode(f"{SENTINEL} {answer}")[: self.settings.target_length - 1]
        return [*ids, EOS]
