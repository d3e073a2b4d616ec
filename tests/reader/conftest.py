"""Small readers, corpora and stores that the reader's tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from btr_reader.batches import PassageBatch, pad_passages, pad_queries
from btr_reader.corpus import topic_passages
from btr_reader.encoder import FusionEncoder
from btr_reader.encoding import PassageEncoder, calibrate_residual_scale, encode_corpus
from btr_reader.jsonl import write_jsonl
from btr_reader.passages import Passage, parse_passage
from btr_reader.reader import Reader, random_reader
from btr_reader.settings import ReaderSettings, t5_config
from btr_reader.tokenizer import ReaderTokenizer
from btr_reader.training.examples import read_examples
from btr_reader.training.facts import fact_corpus, fact_questions, fact_texts
from btr_reader.training.loop import with_code

from .helpers import CENTROIDS, SMALL, TINY
from .retrieval_helpers import tiny_encoder


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def passages() -> list[Passage]:
    return [parse_passage(record, "topics") for record in topic_passages(40)[:400:10]]


@pytest.fixture(scope="session")
def tokenizer() -> ReaderTokenizer:
    return ReaderTokenizer.train([record["text"] for record in topic_passages()[:150]], 1000)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, passages) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "passages.jsonl"
    write_jsonl(path, ({"id": p.id, "title": p.title, "text": p.text} for p in passages))
    return path


@pytest.fixture(scope="session")
def make_reader(tokenizer, passages):
    """make_reader(cut_layer, cut_point) -> a calibrated small reader; the same weights every time."""

    def make(cut_layer: int = 2, cut_point: str = "attention_output") -> Reader:
        reader = random_reader(t5_config(SMALL), ReaderSettings(cut_layer, cut_point), tokenizer=tokenizer, seed=3)
        return replace(reader, residual_scale=calibrate_residual_scale(reader, passages[:8], 32))

    return make


@pytest.fixture(scope="session")
def reader(make_reader) -> Reader:
    return make_reader()


@pytest.fixture(scope="session")
def reader_directory(tmp_path_factory, reader) -> Path:
    path = tmp_path_factory.mktemp("readers") / "small"
    reader.save(path)
    return path


@pytest.fixture(scope="session")
def store_directory(tmp_path_factory, reader, corpus) -> Path:
    path = tmp_path_factory.mktemp("stores") / "half"
    encode_corpus(PassageEncoder(reader, keep=0.5, passage_length=32), corpus, path, shard_passages=16, progress=False)
    return path


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory, passages) -> Path:
    """A tiny BERT that knows the corpus' words."""
    return tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny", [p.text for p in passages])


@pytest.fixture(scope="session")
def queries(tokenizer):
    """Two queries of different lengths."""
    texts = [
        "question: what is a list answer: <extra_id_0>",
        "question: how does the with statement end answer: <extra_id_0>",
    ]
    return pad_queries([tokenizer.encode(text) for text in texts])


@pytest.fixture(scope="session")
def token_batch(tokenizer, passages) -> PassageBatch:
    """Three passages of the first query and two, shorter, of the second."""
    rows = [(passages[:3], (24, 17, 30)), (passages[3:5], (9, 20))]
    return pad_passages(
        [[tokenizer.encode_passage(p.reader_text, length) for p, length in zip(*row, strict=True)] for row in rows]
    )


@pytest.fixture(scope="session")
def offline_states():
    """offline_states(reader, token_batch) -> float states (B, P, T, d) at the reader's cut, 0 for padding."""

    @torch.inference_mode()
    def run(reader: Reader, batch: PassageBatch) -> torch.Tensor:
        sizes = batch.sizes.flatten(0, 1)
        rows = sizes.any(1)
        states = torch.zeros(*sizes.shape, reader.config.d_model)
        ids = batch.content.flatten(0, 1)[rows]
        states[rows] = FusionEncoder(reader.model).passage_states(ids, sizes[rows], reader.settings)
        return states.unflatten(0, batch.sizes.shape[:2])

    return run


@pytest.fixture(scope="session")
def facts_tokenizer() -> ReaderTokenizer:
    return ReaderTokenizer.train(list(fact_texts(20)), 390)


@pytest.fixture
def tiny_reader(facts_tokenizer):
    """tiny_reader(seed) -> a reader of the generated task's words that was never calibrated."""

    def make(seed: int = 0) -> Reader:
        return random_reader(t5_config(TINY), ReaderSettings(2), tokenizer=facts_tokenizer, seed=seed)

    return make


@pytest.fixture
def task(tmp_path, facts_tokenizer):
    """Six questions of three passages, in `facts.jsonl`; the passages are in `passages.jsonl`."""
    questions = list(fact_questions("nq", 6, 3))
    write_jsonl(tmp_path / "facts.jsonl", questions)
    write_jsonl(tmp_path / "passages.jsonl", fact_corpus(questions))
    return read_examples(tmp_path / "facts.jsonl", "nq", facts_tokenizer)


@pytest.fixture
def coded(tiny_reader, task):
    """coded(masked_bits, cut_point) -> a tiny reader with a code."""

    def make(masked_bits: int = 0, cut_point: str = "attention_output"):
        reader = tiny_reader()
        reader = reader.with_settings(replace(reader.settings, cut_point=cut_point))
        return with_code(reader, task, replace(CENTROIDS, masked_bits=masked_bits))

    return make
