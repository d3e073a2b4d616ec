"""Merging of passage tokens in the joint layers and before the decoder."""

from __future__ import annotations

import math

import pytest
import torch

import btr_kernels
from btr_reader.attention import attention_bias
from btr_reader.batches import PassageBatch, pad_passages, pad_queries
from btr_reader.compression import earliest_positions, merge_passages
from btr_reader.encoder import FusionEncoder
from btr_reader.engine import ReaderEngine
from btr_reader.shares import PRESETS, Compression


@pytest.mark.parametrize("form", ["atlas", "deformer", "btr"])
def test_keeping_everything_changes_nothing(reader, queries, token_batch, offline_states, form):
    states = offline_states(reader, token_batch)
    content = {"atlas": token_batch.content, "deformer": states, "btr": btr_kernels.pack_bits(states)}[form]
    batch = PassageBatch(content, token_batch.sizes)
    plain = ReaderEngine(reader, form).encode(queries, batch)
    kept = ReaderEngine(reader, form, Compression(1.0, 1.0, 1.0)).encode(queries, batch)
    assert torch.equal(plain.states, kept.states)


def test_explicit_sizes_and_positions_of_unmerged_tokens_change_nothing(reader, queries, token_batch, offline_states):
    """The path that merged tokens take gives, on tokens that stand for themselves, the same bits."""
    states = offline_states(reader, token_batch)
    positions = torch.arange(states.shape[2], dtype=torch.int32).expand(token_batch.sizes.shape)
    engine = ReaderEngine(reader, "deformer")
    plain = engine.encode(queries, PassageBatch(states, token_batch.sizes))
    explicit = engine.encode(queries, PassageBatch(states, token_batch.sizes, positions))
    assert torch.equal(plain.states, explicit.states)


def test_merging_down_to_everything_is_the_identity(passages):
    states = torch.randn(2, 9, 44, generator=torch.Generator().manual_seed(0))
    sizes = torch.ones(2, 9, dtype=torch.int32)
    sizes[1, 6:] = 0
    states[1, 6:] = 0
    positions = torch.arange(9, dtype=torch.int32).expand(2, 9)
    merged, merged_sizes, merged_positions, _ = merge_passages(states, sizes, positions, 1.0)
    assert torch.equal(merged, states)
    assert torch.equal(merged_sizes, sizes)
    assert merged_positions[0].tolist() == list(range(9))
    assert merged_positions[1, :6].tolist() == list(range(6))


def test_equal_tokens_merge_and_keep_size_and_first_position():
    a, b, c = torch.eye(3, 16) * 2 - 1
    # Even positions 0, 2, 4 are matched to odd ones 1, 3: 0 -> 1 and 4 -> 3 are exact pairs.
    states = torch.stack([a, a, c, b, b])[None]
    sizes = torch.tensor([[1, 2, 1, 1, 3]], dtype=torch.int32)
    positions = torch.tensor([[0, 4, 7, 9, 12]], dtype=torch.int32)
    merged, merged_sizes, merged_positions, _ = merge_passages(states, sizes, positions, 0.6)
    assert torch.equal(merged[0], torch.stack([a, c, b]))
    assert merged_sizes.tolist() == [[3, 1, 4]]
    assert merged_positions.tolist() == [[0, 7, 9]]


def test_earliest_positions():
    slot = torch.tensor([[2, 0, 0, 2, -1], [0, 0, 1, 1, 1]], dtype=torch.int32)
    assert earliest_positions(slot, None, 4).tolist() == [[1, 0, 0, 0], [0, 2, 0, 0]]
    positions = torch.tensor([[9, 8, 7, 6, 1], [5, 4, 3, 2, 1]], dtype=torch.int32)
    assert earliest_positions(slot, positions, 3).tolist() == [[7, 0, 6], [4, 1, 0]]


def test_a_token_of_size_s_counts_as_s_equal_tokens(reader):
    """Proportional attention: merging equal tokens that stand at one place leaves the attention as it was."""
    encoder = FusionEncoder(reader.model)
    generator = torch.Generator().manual_seed(1)
    distinct = torch.randn(1, 4, 44, generator=generator)
    repeated = distinct[:, [0, 1, 1, 1, 2, 3]]
    by_distance = encoder._distances(4)
    positions = torch.tensor([[0, 1, 2, 3]])
    bias_of_merged = attention_bias(by_distance, torch.tensor([[1, 3, 1, 1]]), positions)
    bias_of_repeated = attention_bias(
        by_distance, torch.ones(1, 6, dtype=torch.int32), positions[:, [0, 1, 1, 1, 2, 3]]
    )
    merged, _ = encoder._attention(0, distinct, bias_of_merged)
    plain, _ = encoder._attention(0, repeated, bias_of_repeated)
    torch.testing.assert_close(merged, plain[:, [0, 1, 4, 5]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "aggressive"])
def test_tokens_left_for_the_decoder(reader, tokenizer, passages, offline_states, preset):
    compression = PRESETS[preset]
    length, width = 30, 8
    query = pad_queries([tokenizer.encode("question: what is a list answer: <extra_id_0>")[-width:]])
    tokens = pad_passages([[tokenizer.encode_passage(p.reader_text, length) for p in passages[:3]]])
    bits = btr_kernels.pack_bits(offline_states(reader, tokens))
    memory = ReaderEngine(reader, "btr", compression).encode(query, PassageBatch(bits, tokens.sizes))
    left = length
    for _ in range(reader.config.num_layers - reader.settings.cut_layer):
        left = math.ceil(compression.joint * left)
    left = math.ceil(compression.decoder * left)
    assert memory.sizes.shape == (1, 3 * (width + left))
    by_passage = memory.sizes.reshape(3, width + left)
    assert (by_passage[:, :width] == 1).all()
    assert by_passage[:, width:].sum(1).tolist() == [length] * 3


def test_shares_out_of_range_are_named():
    for keep in (0, 1.5, -0.1, float("nan"), True, "half"):
        with pytest.raises(ValueError, match="joint: the share of tokens to keep"):
            Compression(joint=keep)
