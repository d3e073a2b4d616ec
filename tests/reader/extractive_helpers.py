"""Questions that a tiny extractive reader learns to answer, and that reader, for the tests of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from btr_reader.extractive.examples import SpanExample
from btr_reader.jsonl import write_jsonl
from btr_reader.passages import Passage

from .retrieval_helpers import WORDS, tiny_encoder


def tiny_bert(directory: Path) -> Path:
    """A BERT of two layers and 32 channels that knows the questions' words."""
    return tiny_encoder(directory, ["title : context who has " + " ".join(WORDS)], 1, 32)


def questions(count: int) -> list[SpanExample]:
    """`who has WORD`: that word, which is in one of two passages."""
    found = []
    for number in range(count):
        words = [WORDS[(number * step + number // 12) % 12] for step in (1, 5, 7, 11)]
        words += [word for word in WORDS if word not in words]
        passages = [Passage(f"{side}{number}", "", " ".join(words[side::2])) for side in (0, 1)]
        found.append(SpanExample(f"q{number}", f"who has {words[number % 9]}", [words[number % 9]], passages))
    return found


def records(examples: Sequence[SpanExample]) -> list[dict[str, Any]]:
    """The questions in Atlas' format of natural questions."""
    return [
        {
            "id": e.id, "question": e.question, "answers": e.answers,
            "passages": [{"id": p.id, "title": p.title, "text": p.text} for p in e.passages],
        }
        for e in examples
    ]  # fmt: skip


def write_passages(path: Path, examples: Sequence[SpanExample]) -> Path:
    """The corpus of the questions' passages."""
    write_jsonl(path, {p["id"]: p for record in records(examples) for p in record["passages"]}.values())
    return path
