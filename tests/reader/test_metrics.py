"""Metrics against values worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from btr_reader.evaluation import evaluate_file
from btr_reader.jsonl import write_jsonl
from btr_reader.metrics import best_f1, exact_match, normalize_answer, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat", "cat"),
        ("a U.S. state, an island", "us state island"),
        ("theory of the anthem", "theory of anthem"),
        ("", ""),
        ("A", ""),
        ("São Paulo!", "são paulo"),
        ("don't", "dont"),
    ],
)
def test_normalisation(text, expected):
    assert normalize_answer(text) == expected


def test_exact_match_takes_the_best_answer():
    assert exact_match("The Beatles.", ["Rolling Stones", "beatles"]) == 1
    assert exact_match("Beatles band", ["beatles"]) == 0
    assert exact_match("x", []) == 0


def test_f1():
    # 2 of 3 predicted words are among 4: precision 2/3, recall 1/2, F1 4/7.
    assert token_f1("big red dog", "big red house cat") == pytest.approx(4 / 7)
    # Repeated words count as often as both have them.
    assert token_f1("go go go", "go go stop") == pytest.approx(2 / 3)
    assert token_f1("", "x") == 0
    assert best_f1("red dog", ["blue", "red", "dog red"]) == 1
    assert best_f1("red", []) == 0


def results(path, rows):
    write_jsonl(path, rows)
    return path


def test_question_answering_metrics(tmp_path):
    path = results(
        tmp_path / "r.jsonl",
        [
            {"generation": "the Eiffel tower", "answers": ["Eiffel Tower", "La tour Eiffel"]},
            {"generation": "big red dog", "answers": ["big red house cat"]},
            {"generation": "", "answers": ["x"]},
        ],
    )
    for task in ("nq", "triviaqa", "webq"):
        metrics = evaluate_file(path, task)
        assert metrics == {
            "questions": 3,
            "exact_match": pytest.approx(100 / 3),
            "f1": pytest.approx(100 * (1 + 4 / 7) / 3),
        }


def test_fever_is_not_normalised(tmp_path):
    path = results(
        tmp_path / "r.jsonl",
        [
            {"generation": "true", "answers": ["true"]},
            {"generation": "True", "answers": ["true"]},
            {"generation": "maybe", "answers": ["maybe"]},
            {"generation": "false", "answers": ["true"]},
        ],
    )
    assert evaluate_file(path, "fever") == {"questions": 4, "accuracy": 50}


def choice(uid, options, answer, logits, original):
    letters = sorted(options)
    metadata = {"uid": uid, "options": options, "answer": answer, "is_original": original}
    generation = max(letters, key=logits.get)
    return {"generation": generation, "answers": [answer], "metadata": metadata, "choice_logits": logits}


def test_mmlu_is_debiased_over_permutations(tmp_path):
    """The reader always prefers what is listed first, by 2; it also knows, by 1, that 'sea' is right."""
    rows = [
        choice("q", {"A": "sky", "B": "sea"}, "B", {"A": 2.0, "B": 1.0}, True),
        choice("q", {"A": "sea", "B": "sky"}, "A", {"A": 3.0, "B": 0.0}, False),
    ]
    metrics = evaluate_file(results(tmp_path / "r.jsonl", rows), "mmlu")
    # sea: (1 / (1 + e) + 1 / (1 + e^-3)) / 2 = 0.611 > 1/2.
    assert (1 / (1 + math.e) + 1 / (1 + math.exp(-3))) / 2 > 0.5
    assert metrics == {"questions": 1, "accuracy": 0, "debiased_accuracy": 100}
    assert evaluate_file(results(tmp_path / "one.jsonl", rows[:1]), "mmlu") == {"questions": 1, "accuracy": 0}


@pytest.mark.parametrize(
    ("task", "row", "match"),
    [
        ("nq", {"answers": ["x"]}, "'generation'"),
        ("nq", {"generation": "x"}, "'answers'"),
        ("nq", {"generation": "x", "answers": []}, "'answers'"),
        ("mmlu", {"generation": "A", "answers": ["A"]}, "'metadata'"),
        ("mmlu", choice("q", {"A": "1", "B": "2"}, "A", {"A": 0, "B": 0}, False), "in their own order"),
        (
            "mmlu",
            {**choice("q", {"A": "1", "B": "2"}, "A", {"A": 0, "B": 0}, True), "choice_logits": {"A": 1}},
            "'choice_logits'",
        ),
    ],
)
def test_incomplete_results_are_named(tmp_path, task, row, match):
    good = choice("g", {"A": "1", "B": "2"}, "A", {"A": 0, "B": 0}, True)
    path = results(tmp_path / "r.jsonl", [good, row])
    with pytest.raises(ValueError, match=f"r.jsonl:2: .*{match}"):
        evaluate_file(path, task)


def test_empty_and_unknown(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        evaluate_file(results(tmp_path / "r.jsonl", []), "nq")
    with pytest.raises(ValueError, match="task must be one of"):
        evaluate_file(results(tmp_path / "r.jsonl", [{"generation": "x", "answers": ["x"]}]), "squad")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"generation": "x", "answers": ["x"]}) + "\n{oops\n")
    with pytest.raises(ValueError, match=r"bad.jsonl:2: not valid JSON"):
        evaluate_file(tmp_path / "bad.jsonl", "nq")
