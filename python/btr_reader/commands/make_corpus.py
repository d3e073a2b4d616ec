"""`btr make-corpus`: real text for a first try."""

from __future__ import annotations

from pathlib import Path


def make_corpus(out: Path, questions: int = 500) -> None:
    """Writes passages.jsonl and questions.jsonl, in Atlas' formats, from the reference topics that ship with Python.

    Args:
        out: Directory to write them to.
        questions: Fill-in questions to make, at most.
    """
    from ..corpus import make_corpus as make

    if questions < 1:
        raise ValueError(f"questions must be at least 1, got {questions}")
    passages, asked = make(out, questions)
    print(f"{out / 'passages.jsonl'}: {passages} passages; {out / 'questions.jsonl'}: {asked} questions")
