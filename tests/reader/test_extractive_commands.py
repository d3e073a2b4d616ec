"""The commands of the extractive reader: from a BERT to answers, and answers that are gone on with."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest

from btr_reader.extractive import answering
from btr_reader.extractive.calibration import calibrated
from btr_reader.extractive.examples import SpanBatches, read_span_examples
from btr_reader.extractive.forward import ExtractiveModel
from btr_reader.extractive.reader import load_extractive_reader
from btr_reader.jsonl import write_jsonl
from btr_reader.passages import Passage
from btr_reader.settings import ReaderSettings
from btr_reader.store import Store
from btr_reader.training.run import BEST

from .extractive_helpers import questions, records, tiny_bert, write_passages
from .helpers import rows, run
from .retrieval_helpers import WORDS


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture
def reader(directory):
    loaded = load_extractive_reader(directory, ReaderSettings(1, "layer_output"), query_length=8)
    return calibrated(loaded, [passage for example in questions(8) for passage in example.passages], 16)


def test_from_a_bert_to_answers(directory, tmp_path, capsys):
    asked = records(questions(8))
    path = tmp_path / "q.jsonl"
    write_jsonl(path, asked)
    assert [e.answers for e in read_span_examples(path)] == [e.answers for e in questions(8)]
    common = ["--train", path, "--dev", path, "--steps", "2", "--batch-size", "4", "--passage-length", "16"]
    start = ["--model", directory, "--cut-layer", "1", "--query-length", "8"]
    assert run("train", "extractive", "--form", "teacher", *start, *common, "--out", tmp_path / "t") == 0
    assert "exact match" in capsys.readouterr().out
    status = run(
        "train", "extractive", "--form", "btr", "--model", tmp_path / "t" / BEST, "--teacher", tmp_path / "t" / BEST,
        *common, "--masked-bits", "16", "--offline", "0.8", "--same-id-first", "--out", tmp_path / "s",
    )  # fmt: skip
    assert status == 0 and "on 8 questions" in capsys.readouterr().out
    assert load_extractive_reader(tmp_path / "s" / BEST).code.mask is not None
    corpus = write_passages(tmp_path / "corpus.jsonl", questions(8))
    encode = ["extractive", "encode", corpus, "--passage-length", "16", "--same-id-first"]
    assert run(*encode, "--keep", 0.8, "--reader", tmp_path / "s" / BEST, "--out", tmp_path / "store") == 0
    settings = Store(tmp_path / "store").settings
    assert (settings.masked_bits, settings.keep, settings.same_id_first) == (16, 0.8, True)
    assert run(*encode, "--reader", tmp_path / "s" / BEST, "--out", tmp_path / "other") == 1
    assert "pass --keep below 1" in capsys.readouterr().err
    answer = ["extractive", "answer", "--questions", path, "--reader", tmp_path / "s" / BEST]
    assert run(*answer, "--store", tmp_path / "store", "--out", tmp_path / "answers.jsonl") == 0
    answers = rows(tmp_path / "answers.jsonl")
    assert [row["id"] for row in answers] == [record["id"] for record in asked]
    for row, record in zip(answers, asked, strict=True):
        assert any(row["generation"] in passage["text"] for passage in record["passages"])
    assert run(*answer, "--out", tmp_path / "others.jsonl", "--passage-length", "16") == 0
    assert [row["generation"] for row in rows(tmp_path / "others.jsonl")] != [row["generation"] for row in answers]
    assert run("eval", "--task", "nq", "--answers", tmp_path / "answers.jsonl") == 0
    assert run(*encode, "--keep", 0.8, "--reader", tmp_path / "t" / BEST, "--out", tmp_path / "other") == 1
    assert "was not trained on bits" in capsys.readouterr().err
    write_jsonl(path, [asked[0], asked[0]])
    assert run("train", "extractive", "--form", "teacher", *start, *common, "--out", tmp_path / "u") == 1
    assert "occurs twice" in capsys.readouterr().err


def test_interrupted_answers_continue(reader, tmp_path, capsys):
    reader.save(tmp_path / "r")
    path = tmp_path / "q.jsonl"
    write_jsonl(path, records(questions(36)))
    corpus = write_passages(tmp_path / "corpus.jsonl", questions(36))
    encode = ["extractive", "encode", corpus, "--reader", tmp_path / "r", "--out", tmp_path / "s"]
    assert run(*encode, "--passage-length", 16) == 0
    answer = ["extractive", "answer", "--reader", tmp_path / "r", "--store", tmp_path / "s", "--questions", path]
    answer += ["--batch-size", 2]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert run(*answer, "--out", whole) == 0
    content = whole.read_text()
    lines = content.splitlines(keepends=True)
    assert [row["id"] for row in rows(whole)] == [f"q{number}" for number in range(36)]
    assert run(*answer, "--out", cut) == 0
    cut.write_text("".join(lines[:19]) + lines[19][:30])
    assert run(*answer, "--out", cut) == 1
    assert "exists already; pass --resume to continue it or --overwrite" in capsys.readouterr().err
    marked = lines[0].replace("who has", "who had")
    cut.write_text("".join([marked, *lines[1:19]]))
    assert run(*answer, "--out", cut, "--resume") == 1
    assert "cut.jsonl:1: the result is of question" in capsys.readouterr().err
    # What is there is not answered again.
    done = [line.replace('"passages"', '"read"') for line in lines[:19]]
    cut.write_text("".join(done) + lines[19][:30])
    assert run(*answer, "--out", cut, "--resume") == 0
    assert cut.read_text() == "".join([*done, *lines[19:]])
    for option, value, was in (("--passages", 1, 10), ("--keep-joint", 0.5, 1.0), ("--answer-length", 3, 30)):
        assert run(*answer, "--out", cut, "--resume", option, value) == 1
        name = option[2:].replace("-", "_")
        assert f"cannot resume with other options: {name} was {was}, is {value}" in capsys.readouterr().err
    for wrong in (("--store", tmp_path / "nowhere"), ("--device", "cuda:99")):
        assert run(*answer, *wrong, "--out", cut, "--overwrite") != 0
        assert cut.read_text() == "".join([*done, *lines[19:]])  # nothing is lost to a mistyped command
    assert run(*answer, "--out", cut, "--overwrite") == 0
    assert cut.read_text() == content
    assert run(*answer, "--out", tmp_path / "none" / "out.jsonl") == 1
    assert "out.jsonl: its directory does not exist" in capsys.readouterr().err


def test_answers_go_on_in_the_batches_that_they_would_have_been_in(reader, monkeypatch):
    """Padded to another length, states would be rounded otherwise."""
    monkeypatch.setattr(answering, "POOL", 3)
    # Of different lengths, so that those of a pool are not answered in their order.
    examples = [
        replace(example, passages=[Passage("p", "", " ".join(WORDS[: 3 + number * 5 % 9]))])
        for number, example in enumerate(questions(11))
    ]
    batches = SpanBatches(examples, reader.tokenizer, batch_size=2, passages=1, passage_length=16, query_length=8)
    model, read, batch = ExtractiveModel(reader, "btr"), [], batches.batch

    def noted(chunk):
        read.append([int(example.id[1:]) for example in chunk])
        return batch(chunk)

    monkeypatch.setattr(batches, "batch", noted)
    whole = list(answering.answers_in_order(model, batches, 3))
    pools = list(read)
    assert sorted(chain(*pools[:3])) == list(range(6)) and sorted(chain(*pools[3:])) == list(range(6, 11))
    assert pools[0] == [5, 3]  # the longest
    answers = {example.id: text for example, text in answering.answer_spans(model, batches, 3)}
    assert whole == [(example, answers[example.id]) for example in examples]
    for done in range(12):
        read.clear()
        assert list(answering.answers_in_order(model, batches, 3, done=done)) == whole[done:]
        first = done - done % 6
        assert read == [chunk for chunk in pools if max(chunk) >= done and min(chunk) >= first]


def test_devices(reader, tmp_path, capsys):
    reader.save(tmp_path / "r")
    write_jsonl(tmp_path / "q.jsonl", records(questions(2)))
    corpus = write_passages(tmp_path / "corpus.jsonl", questions(2))
    encode = ["extractive", "encode", corpus, "--reader", tmp_path / "r", "--out", tmp_path / "s"]
    answer = ["extractive", "answer", "--questions", tmp_path / "q.jsonl", "--reader", tmp_path / "r"]
    for command in (encode, [*answer, "--out", tmp_path / "a.jsonl"]):
        assert run(*command, "--device", "cuda:99") == 1
        assert "device: cuda:99 was asked for" in capsys.readouterr().err
    moved = reader.to("meta")
    parts = [*moved.model.parameters(), *moved.head.parameters(), *moved.code.parameters()]
    assert {part.device.type for part in parts} == {"meta"} and moved.device.type == "meta"
