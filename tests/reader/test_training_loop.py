"""The training run: order, resumption after a kill, early stopping, what it refuses; the generated task."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from btr_reader.files import locked
from btr_reader.jsonl import write_jsonl
from btr_reader.reader import load_reader, random_reader
from btr_reader.settings import ReaderSettings, t5_config
from btr_reader.tasks import TASKS
from btr_reader.tokenizer import EOS, ReaderTokenizer
from btr_reader.training.examples import Batches, read_examples
from btr_reader.training.facts import fact_questions, fact_texts
from btr_reader.training.forward import TrainableReader
from btr_reader.training.loop import Trainer
from btr_reader.training.run import BEST, METRICS
from btr_reader.training.settings import Objectives

from .helpers import ANSWERS_ONLY, TINY, killed_at, run

PLAIN = ANSWERS_ONLY
SETTINGS = replace(PLAIN, objectives=Objectives())


@pytest.fixture
def examples(tmp_path, facts_tokenizer):
    path = tmp_path / "facts.jsonl"
    write_jsonl(path, fact_questions("nq", 7, 2))
    return read_examples(path, "nq", facts_tokenizer)


def weights(directory):
    return load_reader(directory).model.state_dict()


def test_batches_come_in_an_order_that_can_be_taken_up(examples, facts_tokenizer):
    first = Batches(examples, facts_tokenizer, SETTINGS)
    in_order = [first[number] for number in range(9)]
    again = Batches(examples, facts_tokenizer, SETTINGS)
    for number in (8, 3, 0):
        assert torch.equal(again[number].query.ids, in_order[number].query.ids)
        assert torch.equal(again[number].targets, in_order[number].targets)
    # Of seven questions every epoch has all, each epoch in another order.
    places = [first._example(place).query for place in range(14)]
    assert sorted(places[:7]) == sorted(places[7:]) == sorted(example.query for example in examples)
    assert places[:7] != places[7:]
    batch = in_order[0]
    assert batch.targets[0, 0] == facts_tokenizer.sentinel and (batch.targets == EOS).sum() == 2


def test_one_of_several_answers_is_taken_by_chance(examples, facts_tokenizer):
    several = [replace(examples[0], answers=["amber", "basil"])]
    batches = Batches(several, facts_tokenizer, replace(SETTINGS, batch_size=1))
    taken = {facts_tokenizer.decode(batches[number].targets[0].tolist()) for number in range(20)}
    assert taken == {"amber", "basil"}


def test_a_killed_run_goes_on_to_the_same_weights(tiny_reader, examples, tmp_path):
    whole = Trainer(tiny_reader(), "atlas", PLAIN, tmp_path / "whole", progress=False)
    best = whole.train(examples, examples[:3])
    killed_at(5, Trainer(tiny_reader(), "atlas", PLAIN, tmp_path / "killed", progress=False), examples, examples[:3])
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-00000004"]
    going_on = Trainer(tiny_reader(), "atlas", PLAIN, tmp_path / "killed", progress=False)
    with torch.no_grad():
        for parameter in going_on.reader.model.parameters():
            parameter.fill_(9)  # all of them come from the checkpoint
    assert going_on.train(examples, examples[:3]) == best
    for name, tensor in whole.trained().model.state_dict().items():
        assert torch.equal(tensor, going_on.trained().model.state_dict()[name]), name
    assert not (tmp_path / "killed" / "checkpoints").exists()
    # Once more there is nothing to do.
    lines = (tmp_path / "killed" / METRICS).read_text()
    assert (
        Trainer(tiny_reader(), "atlas", PLAIN, tmp_path / "killed", progress=False).train(examples, examples[:3])
        == best
    )
    assert (tmp_path / "killed" / METRICS).read_text() == lines
    other = replace(PLAIN, seed=5)
    with pytest.raises(ValueError, match=r"finished.json: of another run, which differs in settings.seed;"):
        Trainer(tiny_reader(), "atlas", other, tmp_path / "killed", progress=False).train(examples, examples[:3])
    for reader, train, dev, differs in (
        (tiny_reader(seed=9), examples, examples[:3], "reader"),
        (tiny_reader(), examples[1:], examples[:3], "train"),
        (tiny_reader(), examples, examples[:2], "dev"),
    ):
        with pytest.raises(ValueError, match=f"of another run, which differs in {differs};"):
            Trainer(reader, "atlas", PLAIN, tmp_path / "killed", progress=False).train(train, dev)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / METRICS).read_text().splitlines()]
    assert steps == [3, 6]


def test_a_checkpoint_of_another_run_is_refused(tiny_reader, examples, tmp_path):
    trainer = Trainer(tiny_reader(), "atlas", PLAIN, tmp_path, progress=False)
    trainer._identify(examples, examples)
    trainer.checkpoints.save(trainer.accelerator, 2, {"step": 2, "best": None, "without_better": 0})
    other = replace(PLAIN, learning_rate=5e-4, objectives=replace(PLAIN.objectives, top_tokens=0.3))
    with pytest.raises(ValueError, match=r"differs in settings.learning_rate, settings.objectives.top_tokens;"):
        Trainer(tiny_reader(), "atlas", other, tmp_path, progress=False).train(examples, examples)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_last_one(tiny_reader, tmp_path, monkeypatch):
    trainer = Trainer(tiny_reader(), "atlas", PLAIN, tmp_path, progress=False)
    progress = {"step": 2, "best": None, "without_better": 0}
    trainer.checkpoints.save(trainer.accelerator, 2, progress)

    def killed(directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.accelerator, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.checkpoints.save(trainer.accelerator, 4, {**progress, "step": 4})
    monkeypatch.undo()
    assert trainer.checkpoints.load(trainer.accelerator) == progress


@pytest.mark.parametrize("kept", [0, 0.5])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "progress.json"])
def test_a_damaged_checkpoint_is_named(tiny_reader, examples, tmp_path, name, kept):
    trainer = Trainer(tiny_reader(), "atlas", PLAIN, tmp_path, progress=False)
    trainer._identify(examples, examples)
    trainer.checkpoints.save(trainer.accelerator, 2, {"step": 2, "best": None, "without_better": 0})
    path = tmp_path / "checkpoints" / "step-00000002" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="step-00000002.*damaged checkpoint"):
        Trainer(tiny_reader(), "atlas", PLAIN, tmp_path, progress=False).train(examples, examples)


def test_two_runs_do_not_share_a_directory(tiny_reader, examples, tmp_path):
    trainer = Trainer(tiny_reader(), "atlas", PLAIN, tmp_path, progress=False)
    with locked(tmp_path, "run"), pytest.raises(ValueError, match="another process is writing this run"):
        trainer.train(examples, examples)


def test_a_kill_while_the_best_is_saved_leaves_the_one_before(tiny_reader, examples, tmp_path, monkeypatch):
    trainer = Trainer(tiny_reader(), "atlas", PLAIN, tmp_path, progress=False)
    trainer.train(examples, examples[:2])
    before = weights(tmp_path / BEST)

    def killed(self, directory):
        save(self, directory)
        (directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    save = type(trainer.reader).save
    monkeypatch.setattr(type(trainer.reader), "save", killed)
    again = Trainer(tiny_reader(seed=1), "atlas", PLAIN, tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        again._evaluate(examples[:2], {"step": 1, "best": None, "without_better": 0})
    for name, tensor in weights(tmp_path / BEST).items():
        assert torch.equal(tensor, before[name]), name


def test_training_stops_when_the_dev_set_says_so(tiny_reader, examples, tmp_path):
    settings = replace(PLAIN, steps=100, evaluate_every=1, patience=2, learning_rate=1e-9)
    best = Trainer(tiny_reader(), "atlas", settings, tmp_path, progress=False).train(examples, examples)
    assert best["step"] == 1
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]


def test_several_passes_are_one_step(tiny_reader, examples, tmp_path):
    """Two questions at once, or one after the other with gradients added up; the second of them alone is different."""
    # The loss is a mean over target tokens: of equal length, else questions count differently.
    same = [replace(example, answers=["amber"]) for example in examples]

    def trained(name, **changes):
        trainer = Trainer(tiny_reader(), "atlas", replace(PLAIN, steps=1, **changes), tmp_path / name, progress=False)
        trainer.train(same, same[:1])
        return torch.cat([parameter.flatten() for parameter in trainer.student.parameters()])

    together = trained("a")
    apart = trained("b", batch_size=1, accumulate=2)
    # Adam's first step goes as far whatever the gradient's size: where it is next to nothing, signs may differ.
    assert (together - apart).abs().mean() < 0.02 * PLAIN.learning_rate
    assert (together - trained("c", batch_size=1)).abs().mean() > 0.1 * PLAIN.learning_rate


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_student_is_saved_as_it_reads(tiny_reader, examples, tmp_path, calibrate, facts_tokenizer):
    reader = replace(tiny_reader(), residual_scale=torch.rand(24) + 0.5)
    settings = replace(SETTINGS, calibrate=calibrate, steps=3)
    trainer = Trainer(reader, "btr", settings, tmp_path, tiny_reader(seed=5), progress=False)
    trainer.train(examples, examples[:2])
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert "dev_exact_match" in lines[-1]
    saved = load_reader(tmp_path / BEST)
    assert torch.equal(saved.residual_scale, torch.ones(24)) == (not calibrate)
    batch = Batches(examples, facts_tokenizer, settings)[0]
    again = TrainableReader(saved.model, saved.settings, "btr", saved.residual_scale)
    trainer.student.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, trainer.student(batch).logits, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_trained_is_refused(tiny_reader, examples, tmp_path, facts_tokenizer):
    with pytest.raises(ValueError, match="teacher: distillation and divergence need one"):
        Trainer(tiny_reader(), "deformer", SETTINGS, tmp_path)
    with pytest.raises(ValueError, match="btr calibrate"):
        Trainer(tiny_reader(), "btr", PLAIN, tmp_path)
    other = ReaderTokenizer.train(list(fact_texts(20)), 260)
    teacher = random_reader(t5_config(TINY), ReaderSettings(2), tokenizer=other)
    with pytest.raises(ValueError, match="teacher: its tokenizer is not the reader's"):
        Trainer(tiny_reader(), "deformer", SETTINGS, tmp_path, teacher)
    wide = random_reader(t5_config(replace(TINY, d_model=32)), ReaderSettings(2), tokenizer=facts_tokenizer)
    with pytest.raises(ValueError, match="teacher: expected 24 channels, got 32"):
        Trainer(tiny_reader(), "deformer", SETTINGS, tmp_path, wide)
    for wrong, message in [
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"warmup": 2}, "warmup must be in 0..1"),
        ({"schedule": "steps"}, "schedule must be one of linear, cosine, constant"),
        ({"target_length": 1}, "target_length must be at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(SETTINGS, **wrong)
    with pytest.raises(ValueError, match="distillation must be 0 or more"):
        Objectives(distillation=-1)
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [{"question": "who", "answers": ["he"]}])
    with pytest.raises(ValueError, match="has no passages"):
        read_examples(path, "nq", facts_tokenizer)
    write_jsonl(path, [{"question": "who", "passages": [{"id": "1", "text": "t"}]}])
    with pytest.raises(ValueError, match="has no answers"):
        read_examples(path, "nq", facts_tokenizer)


@pytest.mark.parametrize("task", TASKS)
def test_facts_can_be_read_off(task, tmp_path, facts_tokenizer):
    path = tmp_path / "facts.jsonl"
    write_jsonl(path, fact_questions(task, 20, 3, seed=4))
    for record, example in zip(
        fact_questions(task, 20, 3, seed=4), read_examples(path, task, facts_tokenizer), strict=True
    ):
        assert len(example.passages) == len({passage.id for passage in example.passages}) == 3
        subject = next(re.finditer("the [a-z]+ of the [a-z]+ [a-z]+", example.query)).group()
        stated = [passage.text.split()[-2] for passage in example.passages if f"{subject} is" in passage.text.lower()]
        if task == "fever" and not stated:
            assert example.answers == ["maybe"]
            continue
        [value] = stated
        if task == "fever":
            assert example.answers == [str(record["claim"].endswith(value)).lower()]
        elif task == "mmlu":
            assert record["options"][example.answers[0]] == value
        else:
            assert example.answers == [value]
        # What is beside it shares a word with the question, as BM25 found it.
        asked = set(subject.split()) - {"the", "of"}
        assert all(asked & set(passage.text.split()) for passage in example.passages)


def test_train_from_the_command_line(tmp_path, capsys):
    facts, out = tmp_path / "facts", tmp_path / "out"
    assert run("make-facts", "--out", facts, "--train", 8, "--dev", 4, "--passages", 2) == 0
    assert run("init-reader", "--shape", "tiny", "--tokenizer", facts / "tokenizer", "--out", tmp_path / "r") == 0
    files = ("--train", facts / "train.jsonl", "--dev", facts / "dev.jsonl")
    short = ("--steps", 2, "--batch-size", 2, "--passages", 2, "--passage-length", 16)
    assert run("train", "teacher", "--reader", tmp_path / "r", *files, "--out", out / "teacher", *short) == 0
    teacher = out / "teacher" / "best"
    student = ("--reader", teacher, *files, "--teacher", teacher, *short)
    assert run("train", "btr", *student, "--out", out / "btr", "--offline", 0.6, "--kind", "tanh") == 0
    assert run("train", "deformer", *student, "--out", out / "deformer") == 0
    assert "exact match" in capsys.readouterr().out
    # The bits of the trained reader, stored and read back.
    reader, store = out / "btr" / "best", tmp_path / "store"
    assert run("encode", facts / "passages.jsonl", "--reader", reader, "--out", store, "--keep", 0.6) == 0
    answers = tmp_path / "answers.jsonl"
    arguments = ("--reader", reader, "--store", store, "--questions", facts / "dev.jsonl", "--out", answers)
    assert run("answer", *arguments) == 0
    assert len(answers.read_text().splitlines()) == 4
    assert run("make-facts", "--out", facts, "--train", 0) == 1
    assert "--train must be at least 1" in capsys.readouterr().err
