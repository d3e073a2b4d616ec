"""Greedy decoding with a preallocated cache, over keys and values projected once for all passages together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from .attention import attend, distance_bias, size_bias
from .encoder import Memory
from .graphs import GraphedSteps
from .linears import BlockLinears, Linears, float_linear, side_by_side
from .tokenizer import EOS, PAD


@dataclass(frozen=True, eq=False)
class CrossMemory:
    """Keys and values of every decoder layer, each `(B, S, inner)`, and the bias of their tokens `(B, 1, 1, S)`."""

    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """What a step reads of a decoder layer. `self_in`: query, key and value; `gates`: the gate and the linear part."""

    self_norm: nn.Module
    cross_norm: nn.Module
    norm: nn.Module
    self_in: nn.Linear
    self_out: nn.Linear
    cross_query: nn.Linear
    cross_out: nn.Linear
    gates: nn.Linear
    out: nn.Linear


class GreedyDecoder:
    """The decoder of a T5 v1.1 model with the weights that it has now.

    It copies some of them: on a CPU all that a step reads, into memory that is read faster. On a GPU its steps are
    captured as CUDA graphs, one for each size.
    """

    def __init__(self, model: T5ForConditionalGeneration, apply: Linears = float_linear):
        self.apply = apply
        self.project_in_block = BlockLinears(apply)
        self.embedding = model.shared
        self.blocks = model.decoder.block
        self.final_norm = model.decoder.final_layer_norm
        self.head_size = model.config.d_kv
        self.start = model.config.decoder_start_token_id
        groups: list[tuple[nn.Linear, ...]] = []
        for own, cross, feed_forward in (block.layer for block in self.blocks):
            attention, crossing, dense = own.SelfAttention, cross.EncDecAttention, feed_forward.DenseReluDense
            groups += [(attention.q, attention.k, attention.v), (attention.o,), (crossing.q,), (crossing.o,)]
            groups += [(dense.wi_0, dense.wi_1), (dense.wo,)]
        groups.append((model.lm_head,))
        streamed = apply is float_linear and model.device.type == "cpu"
        *linears, self.output_head = side_by_side(groups, huge_pages=streamed)
        self.layers = [
            DecoderLayer(*(part.layer_norm for part in block.layer), *linears[6 * index : 6 * index + 6])
            for index, block in enumerate(self.blocks)
        ]
        self._graphs = GraphedSteps(DecoderSteps)

    def project(self, memory: Memory) -> CrossMemory:
        """Projects the cross-attention keys and values of all layers: once per question."""
        attentions = [block.layer[1].EncDecAttention for block in self.blocks]
        return CrossMemory(
            keys=[self.apply(attention.k, memory.states) for attention in attentions],
            values=[self.apply(attention.v, memory.states) for attention in attentions],
            bias=size_bias(memory.sizes, memory.states.dtype)[:, None, None, :],
        )

    def generate(self, cross: CrossMemory, max_new_tokens: int, *, stop_at_end: bool = True) -> Tensor:
        """The most likely token at each step: int64 `(B, n)`, n <= max_new_tokens.

        With `stop_at_end` a finished row is filled with padding, and decoding ends when all rows are finished; without
        it exactly `max_new_tokens` are decoded. Equals `generate(do_sample=False)` of transformers on the same memory.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        steps = self._steps(cross, max_new_tokens)
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
        steps = self._steps(cross, len(prefix) + 1)
        logits = None
        for token in (self.start, *prefix):
            logits = steps.next_logits(torch.full((cross.bias.shape[0],), token, device=cross.bias.device))
        return logits

    def _steps(self, cross: CrossMemory, length: int) -> DecoderSteps:
        """A run of at most `length` steps from the first on."""
        return (self._graphs if cross.bias.is_cuda else DecoderSteps)(self, cross, length)


class DecoderSteps:
    """One decoding run: the self-attention cache and how far it is filled.

    What depends on the position is read through a tensor, so that one captured step serves them all: the cache is
    attended to as a whole, its positions that are not written yet with a bias of -inf.
    """

    def __init__(self, decoder: GreedyDecoder, cross: CrossMemory, length: int):
        self._decoder = decoder
        self._cross = cross
        like = cross.keys[0]
        # Not uninitialised: 0 times what stands behind the bias of -inf must be 0.
        shape = (2, len(decoder.layers), cross.bias.shape[0], length, like.shape[-1])
        self._cache = like.new_zeros(shape)
        self._bias = causal_bias(decoder.blocks[0].layer[0].SelfAttention, length)
        self._position = torch.zeros(1, dtype=torch.int64, device=like.device)

    def restart(self) -> None:
        """Begins another run on the same cross memory tensors."""
        self._position.zero_()

    def next_logits(self, token: Tensor) -> Tensor:
        """Feeds one token `(B,)` and returns the logits `(B, vocabulary)` of the one after it."""
        decoder, cross, project = self._decoder, self._cross, self._decoder.project_in_block
        states = decoder.embedding(token)[:, None]
        # (1, heads, 1, length)
        bias = self._bias.index_select(1, self._position)[None]
        for index, layer in enumerate(decoder.layers):
            mixed = self._self_attention(layer, index, states, bias)
            states = project(layer.self_out, mixed, residual=states)
            query = project(layer.cross_query, states, norm=layer.cross_norm)
            mixed = attend(query, cross.keys[index], cross.values[index], cross.bias, decoder.head_size)
            states = project(layer.cross_out, mixed, residual=states)
            hidden = project(layer.gates, states, norm=layer.norm, gated=True)
            states = project(layer.out, hidden, residual=states)
        self._position += 1
        return project(decoder.output_head, states, norm=decoder.final_norm)[:, 0]

    def _self_attention(self, layer: DecoderLayer, index: int, states: Tensor, bias: Tensor) -> Tensor:
        decoder = self._decoder
        query, key, value = decoder.project_in_block(layer.self_in, states, norm=layer.self_norm).chunk(3, dim=-1)
        keys, values = self._cache[:, index]
        keys.index_copy_(1, self._position, key)
        values.index_copy_(1, self._position, value)
        return attend(query, keys, values, bias, decoder.head_size)


def causal_bias(attention, length: int) -> Tensor:
    """The bias of each key (last) at each position of the query, `(heads, length, length)`, -inf for later keys."""
    by_distance = distance_bias(attention, length, bidirectional=False)
    position = torch.arange(length, device=by_distance.device)
    distance = position - position[:, None]
    return by_distance[:, distance + length - 1].masked_fill(distance > 0, -torch.inf)
