"""`btr eval`: Atlas' metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from .answer import DEFAULT_READING, ReadingOptions
from .retrieve import DEFAULT_RETRIEVAL, RetrievalOptions


def evaluate(
    task: Literal["nq", "triviaqa", "webq", "fever", "mmlu"],
    answers: Path | None = None,
    reader: Path | None = None,
    store: Path | None = None,
    questions: Path | None = None,
    out: Path | None = None,
    json: Path | None = None,
    options: OmitArgPrefixes[ReadingOptions] = DEFAULT_READING,
    retrieval: OmitArgPrefixes[RetrievalOptions] = DEFAULT_RETRIEVAL,
) -> None:
    """Scores a results file, or answers questions first and scores the results.

    Args:
        task: Whose metrics.
        answers: Results file to score.
        reader: Reader directory, where there are no results yet.
        store: Store to read from.
        questions: Questions in Atlas' format of the task.
        out: Results file to write.
        json: File to write the metrics to.
        options: Options of reading.
        retrieval: Options of retrieval.
    """
    from ..evaluation import evaluate_file
    from .answer import answer

    if answers is None:
        if reader is None or questions is None or out is None:
            raise ValueError("pass --answers FILE to score it, or --reader, --questions and --out to make it first")
        answer(reader, questions, out, store, task, options, retrieval)
        answers = out
    elif reader is not None or questions is not None or out is not None:
        raise ValueError("--answers scores a file that is there; it does not go with --reader, --questions or --out")
    metrics = evaluate_file(answers, task)
    for name, value in metrics.items():
        print(f"{name:<18}  {value:.0f}" if name == "questions" else f"{name:<18}  {value:.2f}")
    if json is not None:
        from json import dumps

        json.write_text(dumps({"task": task, "answers": str(answers), **metrics}, indent=2) + "\n")
