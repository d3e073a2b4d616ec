"""The five tasks of the Atlas reader: their question formats and the prompts made from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from .jsonl import read_jsonl, text_field

if TYPE_CHECKING:
    from .tokenizer import ReaderTokenizer

TaskName = Literal["nq", "triviaqa", "webq", "fever", "mmlu"]
TASKS: tuple[str, ...] = get_args(TaskName)
Permutations = Literal["none", "cyclic", "all"]

SENTINEL = "<extra_id_0>"
MMLU_QUERY_TOKENS = 356
_FEVER_LABELS = {"SUPPORTS": "true", "REFUTES": "false", "NOT ENOUGH INFO": "maybe"}


@dataclass(frozen=True)
class Question:
    """One question ready for the reader.

    `passages` are the records given with the question (each has at least an `id`), None where it brings none; an empty
    list says that retrieval found none.
    `choices` are the option letters of a multiple-choice question, empty for the other tasks.
    """

    id: str
    query: str
    answers: list[str]
    passages: list[dict[str, Any]] | None
    metadata: dict[str, Any]
    choices: list[str] = field(default_factory=list)


def read_questions(
    path: str | Path, task: TaskName, tokenizer: ReaderTokenizer | None = None, permutations: Permutations = "none"
) -> Iterator[Question]:
    """Yields the questions of a JSON-lines file in Atlas' format of the task.

    `mmlu` needs the tokenizer (its query is cut to 356 tokens) and yields every question once per permutation of its
    answers. A malformed line is a `ValueError` naming the file and the line; so is a file without questions.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    number = 0
    for number, (where, record) in enumerate(read_jsonl(path), start=1):
        identifier = str(record.get("id", number - 1))
        passages = passage_records(record, where)
        if task == "mmlu":
            if tokenizer is None:
                raise ValueError("task mmlu needs a tokenizer: its question is cut to a number of tokens")
            yield from _multiple_choice(record, where, identifier, passages, tokenizer, permutations)
        elif task == "fever":
            yield _fever(record, where, identifier, passages)
        else:
            query = f"question: {text_field(record, 'question', where)} answer: {SENTINEL}"
            yield Question(identifier, query, _answers(record, where), passages, _metadata(record))
    if number == 0:
        raise ValueError(f"{path}: the file has no questions")


def search_text(record: dict[str, Any], where: str) -> str:
    """What passages are retrieved by for a question of any task: the claim, or the question with its options."""
    if "claim" in record:
        return text_field(record, "claim", where)
    options = record.get("options")
    # In one order, however they are permuted: every order of a question reads the same passages.
    listed = sorted(map(str, options.values())) if isinstance(options, dict) else []
    return " ".join([text_field(record, "question", where), *listed])


def passage_records(record: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """The field `passages` as objects with an `id` that is a string; None where there are none."""
    if "passages" not in record:
        return None
    passages = record["passages"]
    if not isinstance(passages, list):
        raise ValueError(f"{where}: field 'passages' must be a list, got {type(passages).__name__}")
    records = []
    for entry in passages:
        entry = {"id": entry} if isinstance(entry, (str, int)) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (str, int)):
            raise ValueError(
                f"{where}: every entry of 'passages' must be an id or an object with an 'id', got {entry!r}"
            )
        records.append({**entry, "id": str(entry["id"])})
    return records or None


def _metadata(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "passages"}


def _answers(record: dict[str, Any], where: str) -> list[str]:
    """The accepted answers: `answers`, or the single `target`; an unlabelled question has none."""
    answers = record.get("answers")
    if answers is None:
        target = text_field(record, "target", where, default="")
        return [target.removeprefix(SENTINEL).strip()] if target else []
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{where}: field 'answers' must be a list of strings, got {answers!r}")
    return answers


def _fever(record: dict[str, Any], where: str, identifier: str, passages: list[dict[str, Any]] | None) -> Question:
    query = f"question: {text_field(record, 'claim', where)} answer: {SENTINEL}"
    label = record.get("label")
    if label is not None and label not in _FEVER_LABELS:
        raise ValueError(f"{where}: field 'label' must be one of {', '.join(_FEVER_LABELS)}, got {label!r}")
    answers = [] if label is None else [_FEVER_LABELS[label]]
    return Question(identifier, query, answers, passages, _metadata(record))


def _multiple_choice(
    record: dict[str, Any],
    where: str,
    identifier: str,
    passages: list[dict[str, Any]] | None,
    tokenizer: ReaderTokenizer,
    permutations: Permutations,
) -> Iterator[Question]:
    question = text_field(record, "question", where)
    options = record.get("options")
    if not isinstance(options, dict) or len(options) < 2 or not all(isinstance(o, str) for o in options.values()):
        raise ValueError(f"{where}: field 'options' must be an object of at least two strings, got {options!r}")
    letters = sorted(options)
    answer = record.get("answer")
    if answer not in options:
        raise ValueError(f"{where}: field 'answer' must be one of {', '.join(letters)}, got {answer!r}")
    for order in _orders(len(letters), permutations):
        shown = {letter: options[letters[source]] for letter, source in zip(letters, order, strict=True)}
        correct = letters[order.index(letters.index(answer))]
        # The names of these are Atlas': results files of either program can be scored by the other.
        metadata = {**_metadata(record), "options": shown, "answer": correct, "uid": identifier}
        metadata["is_original"] = order == tuple(range(len(letters)))
        query = _multiple_choice_query(question, shown, tokenizer)
        yield Question(identifier, query, [correct], passages, metadata, letters)


def _orders(count: int, permutations: Permutations) -> list[tuple[int, ...]]:
    identity = tuple(range(count))
    if permutations == "none":
        return [identity]
    if permutations == "cyclic":
        return [identity[shift:] + identity[:shift] for shift in range(count)]
    if permutations == "all":
        return list(itertools.permutations(identity))
    raise ValueError(f"permutations must be one of {', '.join(get_args(Permutations))}, got {permutations!r}")


def _multiple_choice_query(question: str, options: dict[str, str], tokenizer: ReaderTokenizer) -> str:
    """Atlas' multiple-choice prompt, at most 356 tokens: what is too long is cut from the left of the question."""
    listed = " ".join(f"({letter}) {text}" for letter, text in options.items())

    def prompt(shown_question: str) -> str:
        return f"question: {shown_question} options: {listed} answer: {SENTINEL}"

    query = prompt(question.strip())
    # One token of the 356 is the end token that Atlas' tokenizer appends.
    excess = len(tokenizer.encode(query)) + 1 - MMLU_QUERY_TOKENS
    if excess <= 0:
        return query
    question_tokens = tokenizer.encode(question)
    return prompt(tokenizer.decode(question_tokens[excess:]))
