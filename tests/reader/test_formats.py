"""Atlas' input formats: passages, the questions of the five tasks, the corpus that ships with Python."""

from __future__ import annotations

import json

import pytest

from btr_reader.corpus import cloze_questions, make_corpus, topic_passages
from btr_reader.jsonl import read_jsonl
from btr_reader.passages import parse_passage, read_passages
from btr_reader.tasks import MMLU_QUERY_TOKENS, read_questions


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_passages(tmp_path):
    path = write(
        tmp_path / "p.jsonl", {"id": "1", "title": "T", "section": "S", "text": "x"}, "", {"id": 2, "text": "é"}
    )
    first, second = read_passages(path)
    assert (first.id, first.title, first.reader_text) == ("1", "T: S", "title: T: S context: x")
    assert (second.id, second.reader_text) == ("2", "title:  context: é")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ({"text": "x"}, "field 'id' is missing"),
        ({"id": "3"}, "field 'text' is missing"),
        ({"id": "3", "text": "  "}, "field 'text' is empty"),
        ({"id": "3", "text": 5}, "field 'text' must be a string, got int"),
        ({"id": True, "text": "x"}, "field 'id' must be a string, got bool"),
        ({"id": "3", "text": "x", "title": []}, "field 'title' must be a string"),
        ({"id": "1", "text": "y"}, "passage id '1' occurs twice"),
    ],
)
def test_malformed_passages_are_named_by_file_and_line(tmp_path, line, match):
    path = write(tmp_path / "p.jsonl", {"id": "1", "text": "x"}, line)
    with pytest.raises(ValueError, match=f"p.jsonl:2: {match}"):
        list(read_passages(path))


def test_not_utf8_and_empty_and_missing(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"id": "1", "text": "x"}\n{"id": "2", "text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"p.jsonl:2: not UTF-8"):
        list(read_passages(path))
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="no passages"):
        list(read_passages(path))
    with pytest.raises(ValueError, match="no questions"):
        list(read_questions(path, "nq"))
    with pytest.raises(FileNotFoundError, match=r"nothing.jsonl: no such file"):
        list(read_passages(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize("task", ["nq", "triviaqa", "webq"])
def test_open_questions(tmp_path, task):
    path = write(
        tmp_path / "q.jsonl",
        {"id": 7, "question": "who?", "answers": ["a", "b"], "passages": ["p1", {"id": 2, "text": "t"}]},
        {"question": "what?", "target": "<extra_id_0> me"},
        {"question": "unlabelled?"},
    )
    first, second, third = read_questions(path, task)
    assert first.query == "question: who? answer: <extra_id_0>"
    assert (first.id, first.answers) == ("7", ["a", "b"])
    assert first.passages == [{"id": "p1"}, {"id": "2", "text": "t"}]
    assert first.metadata == {"id": 7, "question": "who?", "answers": ["a", "b"]}
    assert (second.id, second.answers, second.passages) == ("1", ["me"], None)
    assert third.answers == []


def test_fever(tmp_path):
    labels = [("SUPPORTS", ["true"]), ("REFUTES", ["false"]), ("NOT ENOUGH INFO", ["maybe"])]
    path = write(tmp_path / "q.jsonl", *({"claim": "It is.", "label": label} for label, _ in labels))
    questions = list(read_questions(path, "fever"))
    assert [question.answers for question in questions] == [answers for _, answers in labels]
    assert questions[0].query == "question: It is. answer: <extra_id_0>"


OPTIONS = {"A": "one", "B": "two", "C": "three", "D": "four"}


def test_multiple_choice(tmp_path, tokenizer):
    path = write(tmp_path / "q.jsonl", {"question": "1 + 1?", "options": OPTIONS, "answer": "B"})
    [question] = read_questions(path, "mmlu", tokenizer)
    assert question.query == "question: 1 + 1? options: (A) one (B) two (C) three (D) four answer: <extra_id_0>"
    assert (question.answers, question.choices) == (["B"], ["A", "B", "C", "D"])
    assert question.metadata["is_original"] is True
    cyclic = list(read_questions(path, "mmlu", tokenizer, "cyclic"))
    assert [q.metadata["options"]["A"] for q in cyclic] == ["one", "two", "three", "four"]
    assert [q.answers for q in cyclic] == [["B"], ["A"], ["D"], ["C"]]
    assert [q.metadata["is_original"] for q in cyclic] == [True, False, False, False]
    every = list(read_questions(path, "mmlu", tokenizer, "all"))
    assert len({q.query for q in every}) == 24
    assert all(q.metadata["options"][q.answers[0]] == "two" for q in every)


def test_multiple_choice_is_cut_from_the_left(tmp_path, tokenizer):
    words = " ".join(f"list{i}" for i in range(300))
    path = write(tmp_path / "q.jsonl", {"question": f"first {words} last?", "options": OPTIONS, "answer": "B"})
    [question] = read_questions(path, "mmlu", tokenizer)
    assert MMLU_QUERY_TOKENS - 5 <= len(tokenizer.encode(question.query)) + 1 <= MMLU_QUERY_TOKENS
    assert "first" not in question.query
    assert question.query.endswith("last? options: (A) one (B) two (C) three (D) four answer: <extra_id_0>")


@pytest.mark.parametrize(
    ("task", "record", "match"),
    [
        ("nq", {"answers": ["a"]}, "field 'question' is missing"),
        ("nq", {"question": "q", "answers": "a"}, "field 'answers' must be a list of strings"),
        ("nq", {"question": "q", "passages": "p1"}, "field 'passages' must be a list"),
        ("nq", {"question": "q", "passages": [{"text": "t"}]}, "an id or an object with an 'id'"),
        ("fever", {"question": "q"}, "field 'claim' is missing"),
        ("fever", {"claim": "q", "label": "YES"}, "field 'label' must be one of SUPPORTS"),
        ("mmlu", {"question": "q", "answer": "A"}, "field 'options' must be an object"),
        ("mmlu", {"question": "q", "options": OPTIONS, "answer": "E"}, "field 'answer' must be one of A, B, C, D"),
    ],
)
def test_malformed_questions_are_named_by_file_and_line(tmp_path, tokenizer, task, record, match):
    path = write(tmp_path / "q.jsonl", record)
    with pytest.raises(ValueError, match=f"q.jsonl:1: {match}|q.jsonl:1: .*{match}"):
        list(read_questions(path, task, tokenizer))


def test_unknown_task_and_permutations(tmp_path, tokenizer):
    path = write(tmp_path / "q.jsonl", {"question": "q", "options": OPTIONS, "answer": "A"})
    with pytest.raises(ValueError, match="task must be one of"):
        list(read_questions(path, "squad"))
    with pytest.raises(ValueError, match="permutations must be one of"):
        list(read_questions(path, "mmlu", tokenizer, "some"))
    with pytest.raises(ValueError, match="needs a tokenizer"):
        list(read_questions(path, "mmlu"))


def test_the_corpus_that_ships_with_python(tmp_path):
    passages = topic_passages()
    assert len(passages) > 400
    assert len({passage["id"] for passage in passages}) == len(passages)
    assert all(0 < len(passage["text"].split()) <= 100 for passage in passages)
    assert sum(len(passage["text"]) for passage in passages) > 300_000
    assert make_corpus(tmp_path, 40)[0] == len(passages)
    assert [p.id for p in read_passages(tmp_path / "passages.jsonl")] == [p["id"] for p in passages]
    questions = list(read_questions(tmp_path / "questions.jsonl", "nq"))
    assert 20 <= len(questions) <= 40
    for question in questions:
        gold = parse_passage(question.passages[0], "gold")
        assert question.answers[0] in gold.text
        assert f'"{question.answers[0]}"' not in question.query.split("fills the blank: ")[1].split('"____"')[0]
    assert cloze_questions(passages, 40) == cloze_questions(passages, 40)
    with pytest.raises(ValueError, match="words must be at least 1"):
        topic_passages(0)


@pytest.mark.parametrize(
    "line",
    [b'{"id": "a", "text": "\\ud800 half"}', b'{"id": ' + b"9" * 5000 + b"}", b"[" * 200_000],
    ids=["surrogate", "number", "nesting"],
)
def test_lines_beyond_the_limits_of_text_and_json_are_named(tmp_path, line):
    path = tmp_path / "passages.jsonl"
    path.write_bytes(b'{"id": "x", "text": "y"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"{path}:2: not"):
        list(read_jsonl(path))


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "x"}\n')
    assert [record for _, record in read_jsonl(path)] == [{"id": "x"}]
