"""`btr make-facts`: a generated task that small readers learn from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def make_facts(
    out: Path,
    task: Literal["nq", "triviaqa", "webq", "fever", "mmlu"] = "nq",
    train: int = 4000,
    dev: int = 200,
    passages: int = 4,
    drawn: float = 0.0,
    seed: int = 0,
) -> None:
    """Writes a fact-lookup task in Atlas' formats: train.jsonl, dev.jsonl, passages.jsonl (of dev) and a tokenizer.

    Args:
        out: Directory to write them to.
        task: Format of the questions.
        train: Questions to train on.
        dev: Questions to test on.
        passages: Passages per question: one states the fact that is asked for, the others BM25 finds beside it.
        drawn: Share of those others that are drawn at random instead: easier, for a reader that knows nothing yet.
        seed: Another seed gives other questions.
    """
    from ..jsonl import write_jsonl
    from ..tokenizer import ReaderTokenizer
    from ..training.facts import fact_corpus, fact_questions, fact_texts

    for name, count in (("train", train), ("dev", dev)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    out.mkdir(parents=True, exist_ok=True)
    asked = list(fact_questions(task, dev, passages, 2 * seed + 1, drawn))
    write_jsonl(out / "train.jsonl", fact_questions(task, train, passages, 2 * seed, drawn))
    write_jsonl(out / "dev.jsonl", asked)
    write_jsonl(out / "passages.jsonl", fact_corpus(asked))
    ReaderTokenizer.train(list(fact_texts(200)), 1000).save(out / "tokenizer")
    print(f"{out}: {train} questions to train on, {dev} to test on, {passages} passages each")
