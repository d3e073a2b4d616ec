"""Greedy decoding with a preallocated cache, over keys and values projected once for all passages together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5ForConditionalGeneration

from .attention import attend, distance_bias, rms_norm, size_bias
from .encoder import Memory
from .tokenizer import EOS, PAD


@dataclass(frozen=True, eq=False)
class CrossMemory:
    """Keys and values of every decoder layer, each `(B, S, inner)`, and the bias of their tokens `(B, 1, 1, S)`."""

    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor


class GreedyDecoder:
    """The decoder of a T5 v1.1 model."""

    def __init__(self, model: T5ForConditionalGeneration):
        self.embedding = model.shared
        self.blocks = model.decoder.block
        self.final_norm = model.decoder.final_layer_norm
        self.output_head = model.lm_head
        self.head_size = model.config.d_kv
        self.start = model.config.decoder_start_token_id

    def project(self, memory: Memory) -> CrossMemory:
        """Projects the cross-attention keys and values of all layers: once per question."""
        attentions = [block.layer[1].EncDecAttention for block in self.blocks]
        return CrossMemory(
            keys=[attention.k(memory.states) for attention in attentions],
            values=[attention.v(memory.states) for attention in attentions],
            bias=size_bias(memory.sizes, memory.states.dtype)[:, None, None, :],
        )

    def generate(self, cross: CrossMemory, max_new_tokens: int, *, stop_at_end: bool = True) -> Tensor:
        """The most likely token at each step: int64 `(B, n)`, n <= max_new_tokens.

        With `stop_at_end` a finished row is filled with padding, and decoding ends when all rows are finished; without
        it exactly `max_new_tokens` are decoded. Equals `generate(do_sample=False)` of transformers on the same memory.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        steps = _DecoderSteps(self, cross, max_new_tokens)
        batch = cross.bias.shape[0]
        token = torch.full((batch,), self.start, dtype=torch.int64, device=cross.bias.device)
        finished = torch.zeros(batch, dtype=torch.bool, device=token.device)
        generated = []
        for _ in range(max_new_tokens):
            token = steps.next_logits(token).argmax(-1)
            if stop_at_end:
                token = torch.where(finished, PAD, token)
                finished |= token == EOS
            generated.append(token)
            if stop_at_end and bool(finished.all()):
                break
        return torch.stack(generated, dim=1)

    def logits_after(self, cross: CrossMemory, prefix: Sequence[int]) -> Tensor:
        """The output logits `(B, vocabulary)` for the token after the start token and the given prefix.

        Multiple-choice reading compares them at decoder position 1, after the sentinel (Atlas' `choice_logits`).
        """
        steps = _DecoderSteps(self, cross, len(prefix) + 1)
        logits = None
        for token in (self.start, *prefix):
            logits = steps.next_logits(torch.full((cross.bias.shape[0],), token, device=cross.bias.device))
        return logits


class _DecoderSteps:
    """One decoding run: the self-attention cache and how far it is filled."""

    def __init__(self, decoder: GreedyDecoder, cross: CrossMemory, length: int):
        self._decoder = decoder
        self._cross = cross
        self._position = 0
        inner = cross.keys[0].shape[-1]
        shape = (2, len(decoder.blocks), cross.bias.shape[0], length, inner)
        self._cache = cross.keys[0].new_empty(shape)
        attention = decoder.blocks[0].layer[0].SelfAttention
        # by_distance[:, d + length - 1] is the bias of a key d positions after the query; here only d <= 0 occurs.
        self._by_distance = distance_bias(attention, length, bidirectional=False)[:, :length]

    def next_logits(self, token: Tensor) -> Tensor:
        """Feeds one token `(B,)` and returns the logits `(B, vocabulary)` of the one after it."""
        decoder, cross, position = self._decoder, self._cross, self._position
        states = decoder.embedding(token)[:, None]
        bias = self._by_distance[:, self._by_distance.shape[1] - 1 - position :][None, :, None]
        for index, block in enumerate(decoder.blocks):
            own, crossing, feed_forward = block.layer
            states = states + self._self_attention(own, index, states, bias)
            attention = crossing.EncDecAttention
            query = attention.q(rms_norm(states, crossing.layer_norm))
            mixed = attend(query, cross.keys[index], cross.values[index], cross.bias, decoder.head_size)
            states = states + attention.o(mixed)
            dense = feed_forward.DenseReluDense
            normed = rms_norm(states, feed_forward.layer_norm)
            states = states + dense.wo(F.gelu(dense.wi_0(normed), approximate="tanh") * dense.wi_1(normed))
        self._position = position + 1
        return decoder.output_head(rms_norm(states, decoder.final_norm))[:, 0]

    def _self_attention(self, layer, index: int, states: Tensor, bias: Tensor) -> Tensor:
        attention = layer.SelfAttention
        normed = rms_norm(states, layer.layer_norm)
        keys, values = self._cache[:, index]
        keys[:, self._position] = attention.k(normed)[:, 0]
        values[:, self._position] = attention.v(normed)[:, 0]
        seen = slice(0, self._position + 1)
        mixed = attend(attention.q(normed), keys[:, seen], values[:, seen], bias, self._decoder.head_size)
        return attention.o(mixed)
