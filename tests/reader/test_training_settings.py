"""What a run's settings do: precision, schedule, seed, rates in its metrics."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from btr_reader.jsonl import write_jsonl
from btr_reader.tasks import TASKS
from btr_reader.training import run as training_run
from btr_reader.training.examples import Batches, read_examples
from btr_reader.training.facts import fact_questions
from btr_reader.training.loop import Trainer
from btr_reader.training.run import BEST, METRICS
from btr_reader.training.settings import Objectives, Surrogate

from .helpers import ANSWERS_ONLY, run

PLAIN = replace(ANSWERS_ONLY, steps=4, evaluate_every=4, checkpoint_every=100)


@pytest.fixture
def examples(tmp_path, facts_tokenizer):
    write_jsonl(tmp_path / "facts.jsonl", fact_questions("nq", 7, 2))
    return read_examples(tmp_path / "facts.jsonl", "nq", facts_tokenizer)


@pytest.fixture
def trained(tiny_reader, examples, tmp_path, monkeypatch):
    """trained(name, **settings) -> the trainer after its run, and its lines of metrics, one a step."""
    monkeypatch.setattr(training_run, "REPORT_EVERY", 1)

    def train(name, **changes):
        out = tmp_path / name
        trainer = Trainer(tiny_reader(), "atlas", replace(PLAIN, **changes), out, progress=False)
        trainer.train(examples, examples[:2])
        lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
        return trainer, [line for line in lines if "loss" in line]

    return train


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.student.parameters()])


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("linear", [0.5, 1, 0.5, 0]), ("cosine", [0.5, 1, 0.5, 0]), ("constant", [1, 1, 1, 1])],
)
def test_schedule_by_hand(trained, schedule, shares):
    """Two steps of warming up, two of falling: what is left after each step (constant has no warm-up)."""
    _, lines = trained("out", schedule=schedule, warmup=0.5)
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3 * share for share in shares], abs=1e-9)


def test_rates_by_hand(trained, examples, facts_tokenizer, monkeypatch):
    ticks = iter(range(0, 1000, 4))
    monkeypatch.setattr(training_run, "perf_counter", lambda: float(next(ticks)))
    _, lines = trained("out", accumulate=2)
    batches = Batches(examples, facts_tokenizer, PLAIN)
    first = batches[0].tokens + batches[1].tokens
    # Two passes of two questions; the clock is read at the start and at the end of a window.
    assert lines[0]["tokens_per_second"] == first / 4 and lines[0]["examples_per_second"] == 4 / 4


def test_bfloat16_is_of_the_forward_pass(trained):
    exact, exact_lines = trained("float32")
    rounded, rounded_lines = trained("bfloat16", precision="bfloat16")
    assert rounded_lines[0]["loss"] != exact_lines[0]["loss"]
    assert rounded_lines[0]["loss"] == pytest.approx(exact_lines[0]["loss"], rel=0.01)
    assert all(parameter.dtype == torch.float32 for parameter in rounded.student.parameters())
    assert not torch.equal(weights(exact), weights(rounded))


def test_a_seed_decides_everything(trained):
    first, _ = trained("first")
    again, _ = trained("again")
    other, _ = trained("other", seed=1)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_weight_decay_is_of_matrices_alone(trained):
    decayed, _ = trained("decayed", weight_decay=0.5, steps=1, warmup=0.0)
    plain, _ = trained("plain", steps=1, warmup=0.0)
    for (name, one), two in zip(decayed.student.named_parameters(), plain.student.parameters(), strict=True):
        assert torch.equal(one, two) == (one.ndim == 1), name


OBJECTIVES = ("answers", "recovery", "distillation", "divergence")


@pytest.fixture
def student(tiny_reader, tmp_path):
    """student(**settings) -> a trainer of a BTR student with a teacher."""

    def make(**changes):
        reader = replace(tiny_reader(), residual_scale=torch.linspace(0.5, 1.5, 24))
        return Trainer(reader, "btr", replace(PLAIN, **changes), tmp_path / "out", tiny_reader(seed=1), progress=False)

    return make


@pytest.mark.parametrize("left_out", [None, *OBJECTIVES])
def test_an_objective_of_weight_0_is_left_out(student, examples, tmp_path, monkeypatch, left_out):
    monkeypatch.setattr(training_run, "REPORT_EVERY", 1)
    weights = {name: 0.0 if name == left_out else 0.5 for name in OBJECTIVES}
    trainer = student(steps=1, objectives=Objectives(**weights))
    trainer.train(examples, examples[:2])
    line = json.loads((tmp_path / "out" / METRICS).read_text().splitlines()[0])
    terms = {name: line[name] for name in OBJECTIVES if name in line}
    assert set(terms) == set(OBJECTIVES) - {left_out} and all(value > 0 for value in terms.values())
    assert line["loss"] == pytest.approx(sum(terms.values()))


def test_terms_are_weighted(student, examples):
    trainer = student(objectives=Objectives(*([1.0] * 4)))
    batch = trainer._batches(examples)[0]

    def terms(*weights):
        trainer.settings = replace(trainer.settings, objectives=Objectives(*weights))
        with torch.no_grad():
            return [float(term) for term in trainer._losses(trainer.student(batch), batch).values()]

    weights = (2.0, 0.5, 3.0, 0.25)
    assert terms(*weights) == pytest.approx([w * t for w, t in zip(weights, terms(1.0, 1.0, 1.0, 1.0), strict=True)])


def test_the_annealed_surrogate_follows_the_run(student, examples, monkeypatch):
    """tanh(beta x): beta is 1 at the first of four steps, and 10^(3/4) at the last."""
    seen = []

    def at(self, progress):
        seen.append(progress)
        return original(self, progress)

    original = Surrogate.at
    monkeypatch.setattr(Surrogate, "at", at)
    trainer = student(surrogate=Surrogate("tanh", beta_start=1.0, beta_end=10.0))
    trainer.train(examples, examples[:2])
    assert seen[:4] == [0, 0.25, 0.5, 0.75]
    assert original(trainer.settings.surrogate, 0.75)["grad"] == ("tanh", pytest.approx(10**0.75))


@pytest.mark.parametrize("task", TASKS)
def test_dev_scores_are_those_of_btr_eval(tiny_reader, facts_tokenizer, tmp_path, task):
    """Every task's own metric, of a teacher that has learned some of its few questions."""
    path = tmp_path / "questions.jsonl"
    write_jsonl(path, fact_questions(task, 8, 2))
    orders = "cyclic" if task == "mmlu" else "none"
    examples = read_examples(path, task, facts_tokenizer, orders)
    assert len(examples) == (32 if task == "mmlu" else 8)
    settings = replace(PLAIN, steps=30, learning_rate=1e-2, evaluate_every=15)
    trainer = Trainer(tiny_reader(), "atlas", settings, tmp_path / "out", progress=False, task=task)
    best = trainer.train(examples, examples)
    assert run(
        "eval", "--task", task, "--reader", tmp_path / "out" / BEST, "--questions", path, "--out", tmp_path / "a.jsonl",
        "--json", tmp_path / "m.json", "--max-new-tokens", 5, "--permutations", orders,
    ) == 0  # fmt: skip
    scores = json.loads((tmp_path / "m.json").read_text())
    expected = {"fever": {"accuracy"}, "mmlu": {"accuracy", "debiased_accuracy"}}.get(task, {"exact_match", "f1"})
    assert {name: best[name] for name in expected} == {name: scores[name] for name in expected}
    assert max(scores[name] for name in expected) > 0
