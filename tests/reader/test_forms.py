"""One engine for all forms: they agree to the bit where they must, and with transformers' own T5."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5Attention

import btr_kernels
from btr_reader.attention import position_buckets
from btr_reader.batches import PassageBatch, pad_passages, pad_queries
from btr_reader.encoder import FusionEncoder
from btr_reader.engine import ReaderEngine
from btr_reader.shares import Compression

CUTS = [(1, "attention_output"), (2, "attention_output"), (3, "layer_output")]


def hf_memory(model, query, tokens, row):
    """What transformers' own encoder makes of each [query; passage], one after the other."""
    states = []
    for ids, sizes in zip(tokens.content[row], tokens.sizes[row], strict=True):
        if sizes.any():
            joint = torch.cat([query.ids[row][query.sizes[row] > 0], ids[sizes > 0]])
            states.append(model.encoder(input_ids=joint[None]).last_hidden_state[0])
    return torch.cat(states)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_position_buckets_are_those_of_t5(bidirectional):
    distance = torch.arange(-400, 401)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, 32, 128)
    assert torch.equal(position_buckets(distance, bidirectional=bidirectional, buckets=32, max_distance=128), expected)


@torch.inference_mode()
def test_atlas_encoder_equals_transformers(reader, queries, token_batch):
    memory = ReaderEngine(reader, "atlas").encode(queries, token_batch)
    for row in range(2):
        expected = hf_memory(reader.model, queries, token_batch, row)
        present = memory.sizes[row] > 0
        assert present.sum() == len(expected)
        torch.testing.assert_close(memory.states[row, : len(expected)], expected, rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_greedy_tokens_equal_generate(reader, queries, token_batch):
    ours = ReaderEngine(reader, "atlas").generate(queries, token_batch, 12, stop_at_end=False)
    for row in range(2):
        memory = hf_memory(reader.model, queries, token_batch, row)[None]
        expected = reader.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=torch.ones(memory.shape[:2], dtype=torch.long),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            num_beams=1,
        )
        assert ours[row] == expected[0, 1:].tolist()


@torch.inference_mode()
def test_forced_logits_equal_teacher_forcing(reader, queries, token_batch):
    choices = [5, 9, 200]
    ours = ReaderEngine(reader, "atlas").choice_logits(queries, token_batch, choices)
    sentinel = reader.tokenizer.sentinel
    for row in range(2):
        memory = BaseModelOutput(last_hidden_state=hf_memory(reader.model, queries, token_batch, row)[None])
        logits = reader.model(encoder_outputs=memory, decoder_input_ids=torch.tensor([[0, sentinel]])).logits
        torch.testing.assert_close(ours[row], logits[0, 1, choices], rtol=1e-4, atol=2e-5)


def test_a_finished_row_is_padded_and_decoding_stops(make_reader, queries, token_batch):
    reader = make_reader()
    free = ReaderEngine(reader, "atlas").generate(queries, token_batch, 6, stop_at_end=False)
    last = free[0][0]
    assert last != free[1][0]
    # The end token takes over the output row of the first query's first token: that query then ends at once.
    with torch.no_grad():
        reader.model.lm_head.weight[1] = reader.model.lm_head.weight[last] * 1.0001
    engine = ReaderEngine(reader, "atlas")
    second = [*free[1][: free[1].index(last)], 1] if last in free[1] else free[1]
    first = [1] + [0] * (len(second) - 1)
    assert engine.generate(queries, token_batch, 6) == [first, second]
    alone = pad_queries([queries.ids[0][queries.sizes[0] > 0].tolist()])
    batch = PassageBatch(token_batch.content[:1], token_batch.sizes[:1])
    assert engine.generate(alone, batch, 6) == [[1]]
    assert len(engine.generate(alone, batch, 6, stop_at_end=False)[0]) == 6


@torch.inference_mode()
def test_deformer_with_no_layer_offline_is_atlas(make_reader, offline_states, queries, token_batch):
    reader = make_reader(0, "layer_output")
    states = offline_states(reader, token_batch)
    atlas = ReaderEngine(reader, "atlas").encode(queries, token_batch)
    deformer = ReaderEngine(reader, "deformer").encode(queries, PassageBatch(states, token_batch.sizes))
    assert torch.equal(atlas.sizes, deformer.sizes)
    present = atlas.sizes > 0
    assert torch.equal(atlas.states[present], deformer.states[present])
    tokens = ReaderEngine(reader, "atlas").generate(queries, token_batch, 8, stop_at_end=False)
    assert tokens == ReaderEngine(reader, "deformer").generate(
        queries, PassageBatch(states, token_batch.sizes), 8, stop_at_end=False
    )


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("compression", [Compression(), Compression(joint=0.7, decoder=0.5)])
def test_btr_with_float_states_is_deformer(make_reader, offline_states, queries, token_batch, cut, compression):
    reader = make_reader(*cut)
    batch = PassageBatch(offline_states(reader, token_batch), token_batch.sizes)
    deformer = ReaderEngine(reader, "deformer", compression).encode(queries, batch)
    btr = ReaderEngine(reader, "btr", compression).encode(queries, batch)
    assert torch.equal(deformer.states, btr.states)
    assert torch.equal(deformer.sizes, btr.sizes)


@torch.inference_mode()
def test_deformer_equals_a_masked_atlas_run_by_hand(make_reader, offline_states, queries, token_batch):
    """Lower layers of query and passage apart, the others jointly, through transformers' own blocks."""
    reader = make_reader(2, "layer_output")
    blocks, norm = reader.model.encoder.block, reader.model.encoder.final_layer_norm
    memory = ReaderEngine(reader, "deformer").encode(
        queries, PassageBatch(offline_states(reader, token_batch), token_batch.sizes)
    )

    def run(states, layers):
        bias = blocks[0].layer[0].SelfAttention.compute_bias(states.shape[1], states.shape[1])
        for block in layers:
            states = block(states, position_bias=bias)[0]
        return states

    query_ids = queries.ids[1][queries.sizes[1] > 0]
    expected = []
    for ids, sizes in zip(token_batch.content[1], token_batch.sizes[1], strict=True):
        if sizes.any():
            apart = [run(reader.model.shared(part)[None], blocks[:2]) for part in (query_ids, ids[sizes > 0])]
            expected.append(norm(run(torch.cat(apart, dim=1), blocks[2:]))[0])
    expected = torch.cat(expected)
    torch.testing.assert_close(memory.states[1, : len(expected)], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("cut", CUTS)
@torch.inference_mode()
def test_bits_read_as_plus_minus_rho(make_reader, offline_states, queries, token_batch, cut):
    """BTR on bits equals a plain float computation on x = rho * (±1)."""
    reader = make_reader(*cut)
    cut_layer, cut_point = cut
    states, sizes = offline_states(reader, token_batch), token_batch.sizes
    signs = torch.where(states >= 0, 1.0, -1.0)
    restored = reader.residual_scale * signs
    encoder = FusionEncoder(reader.model)
    if cut_point == "attention_output":
        # The bits are the signs of the normalised state: gamma * (±1) is what the feed-forward reads.
        layer = encoder.blocks[cut_layer - 1].layer[1]
        normed, dense = layer.layer_norm.weight * signs, layer.DenseReluDense
        states = restored + dense.wo(F.gelu(dense.wi_0(normed), approximate="tanh") * dense.wi_1(normed))
        plain = ReaderEngine(reader.with_settings(replace(reader.settings, cut_point="layer_output")), "deformer")
    else:
        states, plain = restored, ReaderEngine(reader, "deformer")
    expected = plain.encode(queries, PassageBatch(states, sizes))
    bits = btr_kernels.pack_bits(offline_states(reader, token_batch))
    got = ReaderEngine(reader, "btr").encode(queries, PassageBatch(bits, sizes))
    present = expected.sizes > 0
    torch.testing.assert_close(got.states[present], expected.states[present], rtol=1e-4, atol=3e-5)


@torch.inference_mode()
def test_bits_restored_on_their_way_to_a_device_are_read_alike(make_reader, offline_states, queries, token_batch):
    reader = make_reader(*CUTS[0])
    bits = btr_kernels.pack_bits(offline_states(reader, token_batch))
    engine = ReaderEngine(reader, "btr")
    on_device, on_the_way = engine._states(PassageBatch(bits, token_batch.sizes)), engine._code.restore(bits)
    assert on_device.restored is None and on_the_way.restored is not None
    assert torch.equal(on_the_way.residual(), on_device.residual()) and torch.equal(on_the_way.bits, bits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_bits_of_a_batch_wait_in_pinned_memory_for_the_kernel_that_restores_them(
    make_reader, offline_states, queries, token_batch
):
    reader = make_reader(*CUTS[0])
    batch = PassageBatch(btr_kernels.pack_bits(offline_states(reader, token_batch)), token_batch.sizes)
    expected = ReaderEngine(reader, "btr").encode(queries, batch)
    sent = batch.to("cuda")
    assert sent.content.is_pinned() and sent.sizes.is_cuda
    got = ReaderEngine(reader.to("cuda"), "btr").encode(queries, batch)
    torch.testing.assert_close(got.states.cpu(), expected.states, rtol=1e-3, atol=1e-3)


def test_padding_and_batching_do_not_change_an_answer(reader, queries, token_batch, offline_states):
    bits = btr_kernels.pack_bits(offline_states(reader, token_batch))
    engine = ReaderEngine(reader, "btr", Compression(joint=0.8, decoder=0.5))
    together = engine.encode(queries, PassageBatch(bits, token_batch.sizes))
    for row in range(2):
        count = int(token_batch.sizes[row].any(1).sum())
        width = int(token_batch.sizes[row].sum(1).max())
        alone = engine.encode(
            pad_queries([queries.ids[row][queries.sizes[row] > 0].tolist()]),
            PassageBatch(bits[row : row + 1, :count, :width], token_batch.sizes[row : row + 1, :count, :width]),
        )
        present = together.sizes[row] > 0
        assert together.sizes[row][present].tolist() == alone.sizes[0].tolist()
        torch.testing.assert_close(together.states[row][present], alone.states[0], rtol=1e-4, atol=2e-5)


def test_wrong_content_is_named(reader, queries, token_batch, offline_states):
    states = offline_states(reader, token_batch)
    bits = btr_kernels.pack_bits(states)
    for form, content, expected in [
        ("atlas", states, "int64 ids"),
        ("deformer", bits, "float states"),
        ("deformer", states[..., :-1], "float states"),
        ("btr", bits[..., :-1], "uint8 bits"),
        ("btr", token_batch.content, "float states"),
    ]:
        with pytest.raises(ValueError, match=f"{form} form must be {expected}"):
            ReaderEngine(reader, form).encode(queries, PassageBatch(content, token_batch.sizes))
    with pytest.raises(ValueError, match="1 queries, but there are 2"):
        ReaderEngine(reader, "atlas").encode(queries, PassageBatch(token_batch.content[:1], token_batch.sizes[:1]))
    with pytest.raises(ValueError, match="form must be one of"):
        ReaderEngine(reader, "fid")
    with pytest.raises(ValueError, match="btr calibrate"):
        ReaderEngine(replace(reader, residual_scale=None), "btr")
    with pytest.raises(ValueError, match="max_new_tokens"):
        ReaderEngine(reader, "atlas").generate(queries, token_batch, 0)


def test_malformed_batches_are_named():
    with pytest.raises(ValueError, match="queries must hold"):
        pad_queries([[1], []])
    with pytest.raises(ValueError, match="passages must hold"):
        pad_passages([[[1]], []])
    with pytest.raises(ValueError, match="sizes"):
        PassageBatch(torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="positions"):
        sizes = torch.ones(1, 2, 3, dtype=torch.int32)
        PassageBatch(torch.zeros(1, 2, 3, 4), sizes, sizes[:, :1])
