"""Training of the extractive reader: what learns, what stays, what a teacher that is remembered gives."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from btr_reader.extractive.answering import span_scores
from btr_reader.extractive.forward import ExtractiveModel
from btr_reader.extractive.reader import HEAD_FILE, load_extractive_reader
from btr_reader.extractive.spans import span_loss
from btr_reader.settings import ReaderSettings
from btr_reader.shares import Compression
from btr_reader.training.extractive import ExtractiveTrainer, SpanTeacher, batches_of, student_of
from btr_reader.training.extractive_settings import ExtractiveSettings
from btr_reader.training.losses import top_tokens
from btr_reader.training.run import BEST, METRICS
from btr_reader.training.settings import Objectives

from .extractive_helpers import questions, tiny_bert
from .helpers import killed_at

ALONE = Objectives(recovery=0.0, distillation=0.0, divergence=0.0)
SETTINGS = ExtractiveSettings(
    steps=4, batch_size=4, passages=2, passage_length=16, learning_rate=3e-3, evaluate_every=4, checkpoint_every=4,
    answer_length=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture
def make(directory):
    return lambda: load_extractive_reader(directory, ReaderSettings(1, "layer_output"), query_length=8)


def test_a_teacher_learns_and_its_students_keep_it(make, directory, tmp_path):
    examples = questions(36)
    settings = replace(SETTINGS, steps=300, batch_size=12, evaluate_every=100, checkpoint_every=300, objectives=ALONE)
    best = ExtractiveTrainer(make(), "atlas", settings, tmp_path / "t", progress=False).train(examples, examples)
    assert best["exact_match"] > 80
    teacher = SpanTeacher(load_extractive_reader(tmp_path / "t" / BEST))

    def f1(model):
        return span_scores(model, batches_of(examples, model.reader, settings), 2)["f1"]

    assert f1(teacher.model) == pytest.approx(best["f1"])
    taught = replace(settings, steps=150, evaluate_every=150, objectives=Objectives(), remember_teacher=True)
    student = student_of(load_extractive_reader(tmp_path / "t" / BEST), "btr", examples, taught)
    before = f1(ExtractiveModel(student, "btr"))
    found = ExtractiveTrainer(student, "btr", taught, tmp_path / "s", teacher, False).train(examples, examples)
    assert found["f1"] > before + 10
    lines = [json.loads(line) for line in (tmp_path / "s" / METRICS).read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] and {"answers", "recovery", "distillation", "divergence"} <= lines[0].keys()
    # What is saved is what was trained.
    again = ExtractiveModel(load_extractive_reader(tmp_path / "s" / BEST), "btr")
    assert f1(again) == pytest.approx(found["f1"])


def test_a_killed_run_goes_on_to_the_same_reader(make, directory, tmp_path):
    settings = replace(SETTINGS, steps=5, checkpoint_every=2, objectives=ALONE, masked_bits=9, centroids=True)
    examples = questions(8)

    def trainer(name, reader):
        return ExtractiveTrainer(
            student_of(reader, "btr", examples, settings), "btr", settings, tmp_path / name, progress=False
        )

    best = trainer("whole", make()).train(examples, examples[:3])
    killed_at(3, trainer("killed", make()), examples, examples[:3])
    going_on = trainer("killed", make())
    with torch.no_grad():
        for parameter in going_on.student.parameters():
            parameter.fill_(9)  # all of them come from the checkpoint
    assert going_on.train(examples, examples[:3]) == best
    for name in ("model.safetensors", HEAD_FILE):
        assert (tmp_path / "killed" / BEST / name).read_bytes() == (tmp_path / "whole" / BEST / name).read_bytes()
    other = load_extractive_reader(directory, ReaderSettings(1, "layer_output"), query_length=9)
    with pytest.raises(ValueError, match="of another run, which differs in code, query_length;"):
        trainer("killed", other).train(examples, examples[:3])


@pytest.mark.parametrize("form", ["atlas", "deformer", "btr"])
def test_what_is_frozen_stays_and_the_rest_moves(make, tmp_path, form):
    settings = replace(SETTINGS, frozen_layers=1, objectives=replace(ALONE, recovery=0.2))
    reader = student_of(make(), form, questions(12), settings)
    before = {name: p.clone() for name, p in reader.model.named_parameters()}
    code = None if reader.code is None else {name: p.clone() for name, p in reader.code.named_parameters()}
    head = reader.head.weight.clone()
    ExtractiveTrainer(reader, form, settings, tmp_path, progress=False).train(questions(12), questions(4))
    for name, parameter in reader.model.named_parameters():
        stays = name.startswith(("embeddings", "encoder.layer.0"))
        assert torch.equal(before[name], parameter) == stays, name
    assert not torch.equal(head, reader.head.weight)
    if code is not None:
        assert all(not torch.equal(code[name], p) for name, p in reader.code.named_parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"calibrate": False},
        {"centroids": True, "masked_bits": 16, "compression": Compression(offline=0.7, joint=0.8)},
        {"same_id_first": True, "compression": Compression(offline=0.7)},
        {"masked_bits": 16},
    ],
)
def test_binary_students_train_their_lower_layers(make, tmp_path, changes):
    """Gradients go through the bits, however they are stored; what stores are made with does not move."""
    settings = replace(SETTINGS, objectives=replace(ALONE, recovery=0.2), **changes)
    reader = student_of(make(), "btr", questions(12), settings)
    weight = reader.model.encoder.layer[0].output.dense.weight
    before, tables = weight.clone(), {name: t.clone() for name, t in reader.code.named_buffers()}
    restored = [p.clone() for p in reader.code.parameters()]
    trainer = ExtractiveTrainer(reader, "btr", settings, tmp_path, progress=False)
    trainer.train(questions(12), questions(4))
    assert trainer.student.same_id_first == settings.same_id_first
    assert not torch.equal(before, weight)
    assert all(torch.equal(tables[name], t) for name, t in reader.code.named_buffers())
    moved = [not torch.equal(old, new) for old, new in zip(restored, reader.code.parameters(), strict=True)]
    assert all(moved) if settings.calibrate else not any(moved)


OF_BITS = [{}, {"masked_bits": 16}, {"centroids": True}, {"centroids": True, "masked_bits": 9}, {"calibrate": False}]


@pytest.mark.parametrize("changes", OF_BITS)
def test_a_student_of_the_same_settings_keeps_its_code(make, tmp_path, changes):
    settings = replace(SETTINGS, **changes)
    start = student_of(make(), "btr", questions(4), settings)
    with torch.no_grad():
        start.code.scale.mul_(1.5)
        start.code.bias.add_(0.25)
    start.save(tmp_path)
    loaded = load_extractive_reader(tmp_path)
    # On other questions tables would be others.
    code = student_of(loaded, "btr", questions(12), settings).code
    assert code.calibrated == settings.calibrate and code.state_dict().keys() == start.code.state_dict().keys()
    for name, tensor in start.code.state_dict().items():
        assert torch.equal(code.state_dict()[name], tensor), name
    for other in (*OF_BITS, {**changes, "masked_bits": 17}):
        if other != changes:
            asked = replace(SETTINGS, **other)
            code = student_of(loaded, "btr", questions(4), asked).code
            expected = student_of(make(), "btr", questions(4), asked).code
            assert code.calibrated == asked.calibrate and code.state_dict().keys() == expected.state_dict().keys()
            for name, tensor in expected.state_dict().items():
                assert torch.equal(code.state_dict()[name], tensor), name
    elsewhere = loaded.with_settings(ReaderSettings(1, "attention_output"))
    assert not torch.equal(student_of(elsewhere, "btr", questions(4), settings).code.scale, start.code.scale)
    assert student_of(loaded, "deformer", questions(4), SETTINGS).code is None


def test_a_remembered_teacher_says_the_same(make):
    settings = replace(SETTINGS, objectives=Objectives())
    reader = make()
    teacher = SpanTeacher(reader)
    examples = questions(6)
    batches = batches_of(examples, reader, settings)
    teacher(batches.batch(examples[:3]), 0.5)
    # Questions that were asked in other company, and one that was not.
    batch = batches.batch([examples[4], examples[2], examples[0]])
    asked, told = teacher(batch), teacher(batch, 0.5)
    torch.testing.assert_close(told.start, asked.start, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(told.end, asked.end, atol=1e-4, rtol=1e-4)
    present = asked.traces[0].slots >= 0
    assert torch.equal(told.traces[0].slots, asked.traces[0].slots)
    torch.testing.assert_close(
        told.traces[0].attention()[present], asked.traces[0].attention()[present], atol=1e-5, rtol=1e-4
    )
    states = asked.traces[0].states[:, asked.traces[0].width :]
    chosen = top_tokens(asked.traces, 0.5)
    assert torch.equal(top_tokens(told.traces, 0.5), chosen)
    torch.testing.assert_close(told.traces[0].states[chosen], states[chosen], atol=0.02, rtol=0.01)
    assert not told.traces[0].states[~chosen].any()
    whole = teacher(batch, 1.0)
    torch.testing.assert_close(whole.traces[0].states[present], states[present], atol=0.02, rtol=0.01)


@pytest.mark.parametrize("form", ["atlas", "btr"])
def test_gradients_in_bfloat16(make, form):
    reader = student_of(make(), form, questions(12), SETTINGS)
    model, batch = ExtractiveModel(reader, form), batches_of(questions(4), reader, SETTINGS).batch(questions(4))

    def gradient(precision):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = span_loss(*model(batch).logits, batch.spans)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, rounded = gradient("float32"), gradient("bfloat16")
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.98


def test_what_cannot_be_trained_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match="teacher: distillation and divergence need one"):
        ExtractiveTrainer(make(), "deformer", SETTINGS, tmp_path)
    alone = replace(SETTINGS, objectives=ALONE)
    with pytest.raises(ValueError, match="passage_length must be at most 56"):
        ExtractiveTrainer(make(), "atlas", replace(alone, passage_length=57), tmp_path)
    with pytest.raises(ValueError, match="frozen_layers must be at most the cut layer"):
        ExtractiveTrainer(make(), "atlas", replace(alone, frozen_layers=2), tmp_path)
    with pytest.raises(ValueError, match="teacher: its joint layers begin elsewhere"):
        teacher = SpanTeacher(make().with_settings(ReaderSettings(1, "attention_output")))
        ExtractiveTrainer(make(), "deformer", SETTINGS, tmp_path, teacher)
    for changes in ({"masked_bits": 3}, {"centroids": True}, {"calibrate": False}, {"compression": Compression(0.5)}):
        for form in ("atlas", "deformer"):
            with pytest.raises(ValueError, match=f"the {form} form is trained on all tokens and no bits"):
                ExtractiveTrainer(make(), form, replace(SETTINGS, objectives=ALONE, **changes), tmp_path)
    with pytest.raises(ValueError, match="objectives: at least one weight must be above 0"):
        replace(ALONE, answers=0.0)
    with pytest.raises(ValueError, match="masked_bits must be 0 or more"):
        replace(SETTINGS, masked_bits=-1)
    with pytest.raises(ValueError, match="same_id_first: there is nothing to merge while offline is 1"):
        replace(SETTINGS, same_id_first=True)
