"""Small readers learn the generated task, and a student that reads stored bits keeps what its teacher knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from btr_reader.answering import Answerer
from btr_reader.encoding import PassageEncoder, calibrate_residual_scale, encode_corpus
from btr_reader.engine import ReaderEngine
from btr_reader.jsonl import write_jsonl
from btr_reader.metrics import exact_match
from btr_reader.reader import load_reader, random_reader
from btr_reader.settings import ReaderSettings, Shape, t5_config
from btr_reader.store import Store
from btr_reader.tasks import read_questions
from btr_reader.tokenizer import ReaderTokenizer
from btr_reader.training.examples import read_examples
from btr_reader.training.facts import fact_corpus, fact_questions, fact_texts
from btr_reader.training.loop import Trainer
from btr_reader.training.run import BEST
from btr_reader.training.settings import Objectives, TrainingSettings

SHAPE = Shape(d_model=64, d_ff=128, heads=4, head_size=16, layers=4, cut_layer=1, vocabulary=300)
PASSAGES, LENGTH = 2, 18


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    directory = tmp_path_factory.mktemp("facts")
    tokenizer = ReaderTokenizer.train(list(fact_texts(100)), SHAPE.vocabulary)
    # Passages drawn at random: among those that BM25 finds, minutes of training would be needed.
    questions = list(fact_questions("nq", 150, PASSAGES, seed=1, drawn=1.0))
    write_jsonl(directory / "train.jsonl", fact_questions("nq", 8000, PASSAGES, drawn=1.0))
    write_jsonl(directory / "dev.jsonl", questions)
    write_jsonl(directory / "passages.jsonl", fact_corpus(questions))
    return directory, tokenizer


def test_a_student_on_stored_bits_keeps_its_teachers_answers(task, tmp_path):
    directory, tokenizer = task
    train, dev = (read_examples(directory / f"{part}.jsonl", "nq", tokenizer) for part in ("train", "dev"))
    settings = TrainingSettings(
        steps=770,
        batch_size=32,
        passages=PASSAGES,
        passage_length=LENGTH,
        target_length=4,
        learning_rate=2e-3,
        evaluate_every=110,
        checkpoint_every=10_000,
        objectives=Objectives(recovery=0.0, distillation=0.0, divergence=0.0),
    )
    start = random_reader(t5_config(SHAPE), ReaderSettings(1), tokenizer=tokenizer)
    taught = Trainer(start, "atlas", settings, tmp_path / "teacher", progress=False).train(train, dev)
    assert taught["exact_match"] > 90
    teacher, student = load_reader(tmp_path / "teacher" / BEST), load_reader(tmp_path / "teacher" / BEST)
    passages = [passage for example in train[:100] for passage in example.passages]
    student = replace(student, residual_scale=calibrate_residual_scale(student, passages, LENGTH))
    settings = replace(settings, steps=440, learning_rate=1e-3, objectives=Objectives())
    Trainer(student, "btr", settings, tmp_path / "btr", teacher, progress=False).train(train, dev)
    reader, store = load_reader(tmp_path / "btr" / BEST), tmp_path / "store"
    encode_corpus(PassageEncoder(reader, passage_length=LENGTH), directory / "passages.jsonl", store, progress=False)
    answerer = Answerer(ReaderEngine(reader, "btr"), Store(store), max_new_tokens=4)
    results = list(answerer.answer(read_questions(directory / "dev.jsonl", "nq"), batch_size=25))
    kept = sum(exact_match(result["generation"], result["answers"]) for result in results) / len(results)
    assert 100 * kept >= 0.95 * taught["exact_match"]
