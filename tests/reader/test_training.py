"""The training objectives on cases worked out by hand, and the forms with gradients against those that read."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

import btr_kernels
from btr_reader.batches import PassageBatch
from btr_reader.decoder import GreedyDecoder
from btr_reader.encoder import LayerTrace
from btr_reader.engine import ReaderEngine
from btr_reader.shares import Compression
from btr_reader.sign_code import mask_signs
from btr_reader.training.forward import Batch, TrainableReader, target_logits
from btr_reader.training.losses import distillation_loss, output_divergence, recovery_loss, task_loss, top_tokens
from btr_reader.training.settings import Surrogate
from btr_reader.training.signs import binary_signs, merge_signs


def test_task_loss_by_hand():
    # Probabilities 1/2, 1/4 and, behind the end, padding that does not count.
    logits = torch.tensor([[[0.0, 0.0, -50.0], [0.0, math.log(1), math.log(2)], [9.0, 0.0, 0.0]]])
    assert task_loss(logits, torch.tensor([[1, 1, 0]])).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_output_divergence_by_hand():
    teacher, student = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]).log(), torch.tensor([[[0.5, 0.5], [0.1, 0.9]]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert output_divergence(student, teacher, torch.tensor([[1, 0]])).item() == pytest.approx(expected)
    assert output_divergence(teacher, teacher, torch.tensor([[1, 1]])).item() == pytest.approx(0, abs=1e-7)


def test_recovery_loss_by_hand():
    restored = torch.tensor([[[1.0, -1.0], [2.0, 2.0], [9.0, 9.0]]])
    states = torch.tensor([[[0.5, -2.0], [2.0, 1.0], [0.0, 0.0]]])
    # (0.25 + 1 + 0 + 1) / 4 over (0.25 + 4 + 4 + 1) / 4; the last token is padding.
    assert recovery_loss(restored, states, torch.tensor([[1, 3, 0]])).item() == pytest.approx(2.25 / 9.25)


def trace(states, slots, attention) -> LayerTrace:
    """One query column in front, which must not count."""
    states = torch.cat([torch.full((1, 1, 1), 100.0), torch.tensor(states)[None, :, None]], dim=1)
    return LayerTrace(states, 1, torch.tensor([slots]), lambda: torch.tensor([attention]))


def test_distillation_by_hand():
    """Four tokens, the third padding; the query looks at tokens 1 and 3, which the student has merged into slot 0."""
    teacher = [
        trace([1.0, 2.0, 9.0, 4.0], [0, 1, -1, 3], [0.1, 0.3, 0.9, 0.2]),
        trace([0.0, 1.0, 9.0, 2.0], [0, 1, -1, 3], [0.2, 0.1, 0.9, 0.3]),
    ]
    assert top_tokens(teacher, 0.5).tolist() == [[False, True, False, True]]
    assert top_tokens(teacher, 0.1).tolist() == [[False, False, False, True]]
    assert top_tokens(teacher, 1.0).tolist() == [[True, True, False, True]]
    student = [
        trace([3.0, 7.0], [1, 0, -1, 0], [0.5, 0.5]),
        trace([1.0, 7.0], [1, 0, -1, 0], [0.5, 0.5]),
    ]
    # Layer 1: (3-2)² and (3-4)² over 2² and 4²; layer 2: (1-1)² and (1-2)² over 1² and 2².
    assert distillation_loss(student, teacher, 0.5).item() == pytest.approx((2 / 20 + 1 / 5) / 2)


def test_surrogates():
    assert Surrogate().at(0.3) == {"grad": "ste", "clamp": 2.0}
    annealed = Surrogate("tanh", beta_start=1, beta_end=100)
    assert annealed.at(0)["grad"] == ("tanh", 1)
    assert annealed.at(0.5)["grad"] == ("tanh", pytest.approx(10))
    assert annealed.at(1)["grad"] == ("tanh", pytest.approx(100))


@pytest.fixture
def batch(queries, token_batch):
    targets = torch.tensor([[1099, 7, 9, 1], [1099, 30, 1, 0]])
    return Batch(queries, token_batch, targets)


def trainable(reader, form, **options) -> TrainableReader:
    return TrainableReader(reader.model, reader.settings, form, reader.residual_scale, **options)


def test_target_logits_are_those_of_transformers(reader, queries, token_batch, batch):
    memory = ReaderEngine(reader, "atlas").encode(queries, token_batch)
    with torch.no_grad():
        ours = target_logits(reader.model, memory, batch.targets)
        for row in range(2):
            present = memory.sizes[row] > 0
            state = BaseModelOutput(last_hidden_state=memory.states[row, present][None].clone())
            labels = batch.targets[row : row + 1]
            shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], dim=1)
            theirs = reader.model(encoder_outputs=state, decoder_input_ids=shifted).logits
            torch.testing.assert_close(ours[row : row + 1], theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("cut", [(2, "attention_output"), (3, "layer_output")])
@pytest.mark.parametrize("form", ["atlas", "deformer", "btr"])
def test_training_sees_what_reading_will(make_reader, offline_states, queries, token_batch, batch, form, cut):
    """The student's memory in training is that of the engine on stored bits: with merging offline and while reading."""
    reader = make_reader(*cut)
    compression = Compression(0.6, 0.8, 0.5) if form == "btr" else Compression()
    states = offline_states(reader, token_batch)
    content = {"atlas": token_batch.content, "deformer": states}.get(form)
    read = PassageBatch(states if content is None else content, token_batch.sizes)
    if form == "btr":
        signs, merged, _ = merge_signs(torch.where(states >= 0, 1.0, -1.0), token_batch, 0.6)
        read = PassageBatch(btr_kernels.pack_bits(signs), merged.sizes, merged.positions)
    memory = ReaderEngine(reader, form, compression).encode(queries, read)
    with torch.no_grad():
        expected = target_logits(reader.model, memory, batch.targets)
        student = trainable(reader, form, compression=compression)
        output = student(batch)
    engine = ReaderEngine(reader, form, compression)
    decoder = GreedyDecoder(reader.model)
    with torch.no_grad():
        generated = decoder.generate(student.cross_memory(decoder, queries, token_batch), 5)
    assert generated.tolist() == engine.generate(queries, read, 5)
    torch.testing.assert_close(output.logits, expected, rtol=1e-3, atol=1e-4)
    layers = reader.config.num_layers - reader.settings.cut_layer
    assert len(output.traces) == layers
    for traced in output.traces:
        assert (traced.slots >= 0).equal(token_batch.sizes.flatten(0, 1) > 0)
        columns = traced.states.shape[1] - traced.width
        attention = traced.attention()
        assert attention.shape[0] == 6 and attention.shape[1] >= columns > int(traced.slots.max())
        assert (attention >= 0).all() and (attention.sum(1) < 1).all()
        if form != "btr":  # nothing is merged
            assert attention.shape[1] == columns


def test_merged_signs_are_the_stored_bits_and_have_gradients():
    states = torch.randn(1, 2, 9, 44, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sizes = torch.ones(1, 2, 9, dtype=torch.int32)
    sizes[0, 1, 6:] = 0
    signs = binary_signs(states, Surrogate(clamp=100.0).at(0))
    merged, batch, slots = merge_signs(signs, PassageBatch(torch.zeros_like(sizes), sizes), 0.5)
    bits = btr_kernels.pack_bits(states.detach()[0])
    plan = btr_kernels.match_tokens(bits, 0.5, torch.tensor([9, 6]))
    stored, stored_sizes = btr_kernels.merge_bits(bits, plan)
    present = stored_sizes > 0
    assert torch.equal(btr_kernels.pack_bits(merged.detach()[0])[present], stored[present])
    assert torch.equal(batch.sizes[0], stored_sizes) and torch.equal(slots, plan.slot.long())
    # Of every slot one gradient is shared by the tokens that went there: its mean.
    merged.sum(-1).sum().backward()
    assert (states.grad[0, 0].abs().sum(1) > 0).all()
    assert (states.grad[0, 1, 6:] == 0).all()


def test_masked_signs_by_hand():
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0]], requires_grad=True)
    mask, fill = torch.tensor([[0], [0b0011]], dtype=torch.uint8), torch.tensor([[0], [0b1111]], dtype=torch.uint8)
    got = mask_signs(signs, torch.tensor([1]), mask, fill)
    assert got.tolist() == [[1, -1, 1, 1]]
    got.sum().backward()
    assert signs.grad.tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("surrogate", [Surrogate(), Surrogate("tanh")])
def test_every_parameter_of_a_student_has_a_gradient(make_reader, batch, surrogate):
    reader = make_reader()
    student = trainable(reader, "btr", compression=Compression(0.6, 0.8, 0.5), surrogate=surrogate)
    teacher = trainable(reader, "atlas")
    with torch.no_grad():
        target = teacher(batch)
    output = student(batch, progress=0.5)
    loss = task_loss(output.logits, batch.targets)
    loss = loss + recovery_loss(output.restored, output.states, output.sizes)
    loss = loss + distillation_loss(output.traces, target.traces, 0.5)
    loss = loss + output_divergence(output.logits, target.logits, batch.targets)
    assert loss.isfinite()
    loss.backward()
    without = [
        name
        for name, p in student.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert without == []


def test_without_calibration_all_scales_are_one(make_reader, batch):
    reader = make_reader()
    plain = TrainableReader(reader.model, reader.settings, "btr")
    ones = replace(reader, residual_scale=torch.ones(44))
    with torch.no_grad():
        layer = reader.model.encoder.block[reader.settings.cut_layer - 1].layer[1]
        layer.layer_norm.weight.mul_(1.5)
        different = trainable(ones, "btr")(batch)
        assert not torch.allclose(plain(batch).logits, different.logits)
        layer.layer_norm.weight.fill_(1)
        torch.testing.assert_close(plain(batch).logits, trainable(ones, "btr")(batch).logits)
