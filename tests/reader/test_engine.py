"""What the engine's speed comes from: libraries of the projections, captured steps, other similarities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers.models.t5.modeling_t5 import T5LayerNorm

import btr_kernels
from btr_reader import encoder
from btr_reader.batches import PassageBatch, QueryBatch
from btr_reader.compression import merge_passages
from btr_reader.cosine import match_by_cosine
from btr_reader.decoder import CrossMemory, DecoderSteps, GreedyDecoder
from btr_reader.engine import ReaderEngine
from btr_reader.graphs import MEMORY_STEP, GraphedSteps
from btr_reader.huge_pages import HugePages
from btr_reader.linears import BlockLinears, Int8Linears, float_linear, side_by_side
from btr_reader.shares import Compression


def layers(*widths: int, d: int = 40) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(d, width, bias=False) for width in widths]


@pytest.mark.parametrize("shape", [(40,), (1, 40), (2, 3, 40), (0, 40), (257, 40)])
def test_float_linear_is_the_linear_layer(shape):
    (linear,) = layers(24)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = x.double() @ linear.weight.double().T
    with torch.inference_mode():
        got = float_linear(linear, x)
        theirs = linear(x)
    assert got.shape == (*shape[:-1], 24) and got.dtype == torch.float32
    assert (got - exact).norm() <= 2 * (theirs - exact).norm() + 1e-6


def test_float_linear_has_gradients():
    (linear,) = layers(24)
    x = torch.randn(3, 40, requires_grad=True)
    float_linear(linear, x).sum().backward()
    torch.testing.assert_close(linear.weight.grad, x.sum(0).detach().expand(24, 40))
    torch.testing.assert_close(x.grad, linear.weight.sum(0).detach().expand(3, 40))


@torch.inference_mode()
def test_int8_linears_are_near_and_quantized_once():
    (linear,) = layers(64)
    linear.weight[5] = 0
    apply = Int8Linears()
    x = torch.randn(2, 9, 40)
    got, exact = apply(linear, x), linear(x)
    error = (got - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03
    assert (got[..., 5] == 0).all()
    linear.weight.zero_()
    assert torch.equal(apply(linear, x), got)
    with pytest.raises(ValueError, match="int8: expected weights on the CPU"):
        apply(nn.Linear(40, 3, bias=False, device="meta"), x)


@pytest.mark.parametrize("huge_pages", [False, True])
def test_layers_side_by_side(huge_pages):
    parts, (alone,) = layers(24, 8, 16), layers(5)
    joint, same = side_by_side([parts, [alone]], huge_pages=huge_pages)
    assert joint.weight.shape == (48, 40) and not joint.weight.requires_grad
    x = torch.randn(5, 40)
    torch.testing.assert_close(joint(x), torch.cat([part(x) for part in parts], dim=1))
    torch.testing.assert_close(same(x), alone(x))
    assert (same is alone) is not huge_pages
    with torch.no_grad():
        parts[0].weight.zero_()
    assert joint.weight.all()


def test_tensors_in_huge_pages_are_apart_aligned_and_outlive_their_memory():
    memory = HugePages(4 * 15 + 2 * 7, 2)
    a, b = memory.empty((3, 5)), memory.empty((7,), torch.bfloat16)
    assert a.data_ptr() % (2 << 20) == 0 and b.data_ptr() % 64 == 0
    assert not a.any() and b.dtype == torch.bfloat16
    a.fill_(1)
    del memory
    assert not b.any() and bool((a == 1).all())
    with pytest.raises(ValueError):
        HugePages(64).empty((3 << 20,))


@pytest.mark.parametrize("tokens", [1, 3, 25])
@pytest.mark.parametrize("gated", [False, True])
def test_block_linear_is_the_same_in_one_kernel_and_apart(tokens, gated):
    (linear,) = layers(48)
    norm = T5LayerNorm(40)
    norm.weight.data.uniform_(0.5, 1.5)
    x, residual = torch.randn(1, tokens, 40), torch.randn(1, tokens, 24 if gated else 48)
    with torch.inference_mode():
        got = BlockLinears(float_linear)(linear, x, norm=norm, residual=residual, gated=gated)
        apart = BlockLinears(lambda layer, states: layer(states))(linear, x, norm=norm, residual=residual, gated=gated)
        plain = BlockLinears(float_linear)(linear, x)
    torch.testing.assert_close(got, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain, linear(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["atlas", "deformer", "btr"])
def test_int8_reader_is_near_the_float_one(reader, queries, token_batch, offline_states, form):
    states = offline_states(reader, token_batch)
    content = {"atlas": token_batch.content, "deformer": states, "btr": btr_kernels.pack_bits(states)}[form]
    batch = PassageBatch(content, token_batch.sizes)
    exact = ReaderEngine(reader, form).encode(queries, batch)
    quantized = ReaderEngine(reader, form, linears="int8").encode(queries, batch)
    present = exact.sizes > 0
    error = (quantized.states - exact.states)[present].norm() / exact.states[present].norm()
    assert 1e-4 < error < 0.1
    assert len(ReaderEngine(reader, form, linears="int8").generate(queries, batch, 3, stop_at_end=False)[0]) == 3
    with pytest.raises(ValueError, match="linears must be one of float, int8, got 'int4'"):
        ReaderEngine(reader, form, linears="int4")


def test_engines_side_by_side_share_weights_and_nothing_else(reader, queries, token_batch, offline_states):
    first = ReaderEngine(reader, "atlas")
    second = ReaderEngine(reader, "deformer", beside=first)
    assert second.decoder is first.decoder
    batch = PassageBatch(offline_states(reader, token_batch), token_batch.sizes)
    alone = ReaderEngine(reader, "deformer").generate(queries, batch, 4)
    for _ in range(2):
        assert second.generate(queries, batch, 4) == alone
        assert first.generate(queries, token_batch, 4) == ReaderEngine(reader, "atlas").generate(
            queries, token_batch, 4
        )
    with pytest.raises(ValueError, match="beside must be an engine for the same model and linears"):
        ReaderEngine(reader, "atlas", linears="int8", beside=first)


def recording_capture(steps, token):
    """What a CUDA graph does, on a CPU: warms up, then a replay writes the step's result to one tensor."""
    for _ in range(2):
        steps.restart()
        logits = steps.next_logits(token).clone()
    return lambda: logits.copy_(steps.next_logits(token)), logits


def greedy(steps, start: int, batch: int, count: int) -> list[list[int]]:
    token, tokens = torch.full((batch,), start), []
    for _ in range(count):
        token = steps.next_logits(token).argmax(-1)
        tokens.append(token.tolist())
    return tokens


@torch.inference_mode()
def test_captured_steps_decode_what_eager_ones_do(reader, queries, token_batch):
    """Fixed tensors, padded to a multiple of MEMORY_STEP and used again for other memories, change no token."""
    engine = ReaderEngine(reader, "atlas")
    decoder = GreedyDecoder(reader.model)
    graphed = GraphedSteps(DecoderSteps, recording_capture)
    cross = engine.cross_memory(queries, token_batch)
    short = CrossMemory([k[:, :9] for k in cross.keys], [v[:, :9] for v in cross.values], cross.bias[..., :9])
    width = cross.bias.shape[-1]
    assert width % MEMORY_STEP and width > MEMORY_STEP
    for memory, length in [(cross, 5), (short, 5), (cross, 1), (cross, 5), (short, 5)]:
        eager = greedy(DecoderSteps(decoder, memory, length), decoder.start, 2, length)
        assert greedy(graphed(decoder, memory, length), decoder.start, 2, length) == eager
    assert len(graphed._runs) == 3


def test_old_graphs_are_dropped():
    made = []

    class Steps:
        def __init__(self, decoder, cross, length):
            made.append(length)

        def restart(self):
            pass

        def next_logits(self, token):
            return token

    graphed = GraphedSteps(Steps, lambda steps, token: (lambda: None, token))
    cross = CrossMemory([torch.zeros(1, 3, 4)], [torch.zeros(1, 3, 4)], torch.zeros(1, 1, 1, 3))
    for length in (*range(1, 11), 10, 1):
        graphed(None, cross, length)
    assert made == [*range(1, 11), 1]


@pytest.mark.parametrize("keep", [1.0, 0.8, 0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 40])
def test_cosine_of_signs_matches_as_hamming_does(n, keep):
    """On ±1 the cosine falls with the Hamming distance, and with 64 channels it is exact."""
    bits = torch.randint(0, 256, (6, n, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    bits[3:, n // 2 :] = bits[3:, : n - n // 2]
    lengths = torch.tensor([n, max(1, n - 1), 1, n, max(1, n // 2), n])
    sizes = (torch.arange(n) < lengths[:, None]).int()
    features = btr_kernels.unpack_bits(bits, 64)
    got, expected = match_by_cosine(features, keep, sizes), btr_kernels.match_tokens(bits, keep, lengths)
    assert torch.equal(got.lengths, expected.lengths) and got.max_len == expected.max_len
    assert torch.equal(got.slot, expected.slot)


@pytest.mark.parametrize("keep", [0.4, 0.25, 0.01])
def test_cosine_matching_in_rounds_keeps_the_share(keep):
    features = torch.randn(3, 21, 5, generator=torch.Generator().manual_seed(2))
    sizes = torch.ones(3, 21, dtype=torch.int32)
    sizes[1, 13:] = 0
    sizes[2, 1:] = 0
    plan = match_by_cosine(features, keep, sizes)
    expected = btr_kernels.match_tokens(btr_kernels.pack_bits(features), keep, (sizes > 0).sum(1))
    assert torch.equal(plan.lengths, expected.lengths) and plan.max_len == expected.max_len
    for row in range(3):
        used = plan.slot[row][sizes[row] > 0]
        assert sorted(used.unique().tolist()) == list(range(int(plan.lengths[row])))
        assert (plan.slot[row][sizes[row] == 0] == -1).all()


def test_similar_features_decide_who_is_merged():
    states = torch.randn(1, 4, 44, generator=torch.Generator().manual_seed(0))
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, -1.0]]])
    ones, positions = torch.ones(1, 4, dtype=torch.int32), torch.arange(4, dtype=torch.int32)[None]
    merged, sizes, kept, slot = merge_passages(states, ones, positions, 0.75, features)
    assert sizes.tolist() == [[1, 2, 1]] and kept.tolist() == [[0, 1, 3]] and slot.tolist() == [[0, 1, 1, 2]]
    torch.testing.assert_close(merged[0, 1], states[0, 1:3].mean(0))


@pytest.mark.parametrize("similarity", ["hamming", "keys"])
def test_layers_have_shares_of_their_own(reader, queries, token_batch, offline_states, similarity):
    batch = PassageBatch(btr_kernels.pack_bits(offline_states(reader, token_batch)), token_batch.sizes)

    def encode(joint, decoder=1.0):
        return ReaderEngine(reader, "btr", Compression(1.0, joint, decoder, similarity)).encode(queries, batch)

    one, same = encode(0.7, 0.5), encode((0.7, 0.7), 0.5)
    assert torch.equal(one.states, same.states) and torch.equal(one.sizes, same.sizes)
    assert encode((1.0, 0.5)).sizes.shape[1] < encode((1.0, 0.9)).sizes.shape[1]
    with pytest.raises(ValueError, match="joint: expected one share or 2, one for each joint layer, got 3"):
        ReaderEngine(reader, "deformer", Compression(joint=[0.9, 0.9, 0.9]))
    with pytest.raises(ValueError, match="similarity must be one of hamming, keys"):
        replace(Compression(), similarity="euclid")


def test_keys_and_signs_merge_different_tokens(reader, queries, token_batch, offline_states):
    batch = PassageBatch(btr_kernels.pack_bits(offline_states(reader, token_batch)), token_batch.sizes)
    by = {
        similarity: ReaderEngine(reader, "btr", Compression(1.0, 0.6, 1.0, similarity)).encode(queries, batch)
        for similarity in ("hamming", "keys")
    }
    assert by["hamming"].sizes.sum() == by["keys"].sizes.sum()
    assert not torch.equal(by["hamming"].states, by["keys"].states)


@pytest.mark.parametrize("similarity", ["hamming", "keys"])
def test_reading_on_a_gpu_waits_for_no_value(reader, queries, token_batch, offline_states, similarity, monkeypatch):
    """Tensors without values go through the encoder and a decoder step; a value that is asked for raises."""
    states = offline_states(reader, token_batch)
    positions = torch.arange(states.shape[2], dtype=torch.int32).expand(token_batch.sizes.shape)
    engine = ReaderEngine(reader, "btr", Compression(0.5, 0.8, 0.3, similarity))
    bits = btr_kernels.pack_bits(states)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        query = QueryBatch(*map(mode.from_tensor, (queries.ids, queries.sizes)))
        tensors = map(mode.from_tensor, (bits, token_batch.sizes, positions))
        batch = PassageBatch(*tensors, span=states.shape[2])
        # On a CPU padding is cut off by its sizes.
        with pytest.raises(DataDependentOutputException):
            engine.encode(query, batch)
        monkeypatch.setattr(encoder, "_drop_padding", lambda states, sizes: (states, sizes))
        cross = engine.cross_memory(query, batch)
        logits = DecoderSteps(engine.decoder, cross, 4).next_logits(torch.zeros(2, dtype=torch.int64))
    assert logits.shape == (2, reader.config.vocab_size)
