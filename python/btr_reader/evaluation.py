"""Atlas' metrics over a results file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .jsonl import read_jsonl
from .metrics import best_f1, exact_match
from .tasks import TASKS, TaskName


def evaluate_file(path: str | Path, task: TaskName) -> dict[str, float]:
    """The task's metrics over a results file, in percent, with the number of questions as `questions`.

    nq, triviaqa, webq: `exact_match` and `f1`, the best over the accepted answers. fever: `accuracy` of the answer as
    it was generated, not normalised. mmlu: `accuracy` over the questions as they stand in the file and, where they
    were also asked with permuted options, `debiased_accuracy`: probabilities of each option averaged over its places.
    A line without the fields that are needed is a `ValueError` naming it.

    >>> evaluate_file("answers.jsonl", "nq")  # doctest: +SKIP
    {'questions': 652.0, 'exact_match': 41.1, 'f1': 49.3}
    """
    rows = list(read_jsonl(path))
    if not rows:
        raise ValueError(f"{path}: the file has no results")
    return evaluate_results(rows, task)


def evaluate_results(rows: Sequence[tuple[str, dict[str, Any]]], task: TaskName) -> dict[str, float]:
    """The same over results that are at hand, at least one, each with what to call it in messages."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    for where, row in rows:
        if not isinstance(row.get("generation"), str):
            raise ValueError(f"{where}: field 'generation' must be a string, got {row.get('generation')!r}")
        if not isinstance(row.get("answers"), list) or not row["answers"]:
            raise ValueError(
                f"{where}: field 'answers' must be a list of at least one answer, got {row.get('answers')!r}"
            )
    if task == "mmlu":
        return _multiple_choice(rows)
    results = [(row["generation"], row["answers"]) for _, row in rows]
    if task == "fever":
        return _percent({"accuracy": [float(generation in answers) for generation, answers in results]})
    return _percent(
        {
            "exact_match": [exact_match(generation, answers) for generation, answers in results],
            "f1": [best_f1(generation, answers) for generation, answers in results],
        }
    )


def _percent(scores: dict[str, list[float]]) -> dict[str, float]:
    questions = len(next(iter(scores.values())))
    return {"questions": float(questions)} | {name: 100 * float(np.mean(values)) for name, values in scores.items()}


def _multiple_choice(rows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, float]:
    by_question: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for where, row in rows:
        metadata = row.get("metadata")
        if not isinstance(metadata, dict) or not {"uid", "is_original", "options", "answer"} <= metadata.keys():
            raise ValueError(f"{where}: field 'metadata' must have uid, is_original, options and answer")
        by_question[metadata["uid"]].append((where, row))
    accuracy, debiased = [], []
    for permuted in by_question.values():
        original = next((row for _, row in permuted if row["metadata"]["is_original"]), None)
        if original is None:
            raise ValueError(f"{permuted[0][0]}: the question was never asked with its options in their own order")
        accuracy.append(float(original["generation"] in original["answers"]))
        debiased.append(float(_debiased_choice(original, permuted) == original["metadata"]["answer"]))
    permutations = max(map(len, by_question.values()))
    return _percent({"accuracy": accuracy} | ({"debiased_accuracy": debiased} if permutations > 1 else {}))


def _debiased_choice(original: dict[str, Any], permuted: list[tuple[str, dict[str, Any]]]) -> str:
    """The option (by its letter in the original order) with the highest probability averaged over the permutations."""
    letter_of = {text: letter for letter, text in original["metadata"]["options"].items()}
    probabilities: dict[str, list[float]] = defaultdict(list)
    for where, row in permuted:
        options, logits = row["metadata"]["options"], row.get("choice_logits")
        if not isinstance(logits, dict) or logits.keys() != options.keys():
            raise ValueError(f"{where}: field 'choice_logits' must have one number for each of {', '.join(options)}")
        values = np.array([logits[letter] for letter in options])
        exponentials = np.exp(values - values.max())
        for text, probability in zip(options.values(), exponentials / exponentials.sum(), strict=True):
            if text not in letter_of:
                raise ValueError(f"{where}: option {text!r} is not among the question's own")
            probabilities[letter_of[text]].append(float(probability))
    return max(probabilities, key=lambda letter: np.mean(probabilities[letter]))
