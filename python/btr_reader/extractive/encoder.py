"""The encoder of an extractive reader in all its forms, over the layers of a BERT.

As for the T5 reader, the forms differ in what they start from: the undecomposed one joins question and passage at the
embeddings, the others at the cut, on states that were computed offline. A passage's positions begin behind a fixed
number of places for the question (DeFormer, Cao et al. 2020), so that they are known offline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

from ..attention import size_bias
from ..batches import QueryBatch
from ..compression import merge_passages
from ..encoder import LayerTrace, beside, columns, followed
from ..linears import float_product
from ..settings import ReaderSettings
from ..shares import Compression

QUESTION, PASSAGE = 0, 1  # segments


@dataclass(frozen=True, eq=False)
class Joint:
    """States of the original tokens of N = B * P passages after the last layer, float `(N, T, d)`.

    A token that was merged has the state of the token that it went into, plus what told the two apart before.
    """

    states: Tensor
    traces: list[LayerTrace]


class BertFusionEncoder:
    """Runs ranges of the layers of a BERT. Holds no state of its own."""

    def __init__(self, model: BertModel, query_length: int):
        self.embeddings, self.layers = model.embeddings, model.encoder.layer
        self.query_length = query_length
        self.head_size = model.config.hidden_size // model.config.num_attention_heads

    def cut_norm(self, settings: ReaderSettings) -> nn.LayerNorm:
        """The norm whose output, without its weight and bias, is what is stored at the cut."""
        layer = self.layers[settings.cut_layer - 1]
        return (layer.attention if settings.cut_point == "attention_output" else layer).output.LayerNorm

    def embed_queries(self, query: QueryBatch) -> Tensor:
        """`(B, Lq, d)`; the first token of a question has position 0, whatever stands to its left."""
        positions = (query.sizes.cumsum(1) - 1).clamp(min=0)
        return self._embed(query.ids, positions, QUESTION)

    def embed_passages(self, ids: Tensor) -> Tensor:
        """`(..., T)` -> `(..., T, d)`"""
        positions = torch.arange(ids.shape[-1], device=ids.device) + self.query_length
        return self._embed(ids, positions, PASSAGE)

    def _embed(self, ids: Tensor, positions: Tensor, segment: int) -> Tensor:
        found = self.embeddings
        states = found.word_embeddings(ids) + found.position_embeddings(positions)
        states = states + found.token_type_embeddings.weight[segment]
        return _affine(found.LayerNorm, _normalise(found.LayerNorm, states))

    def passage_states(self, ids: Tensor, sizes: Tensor, settings: ReaderSettings) -> Tensor:
        """The normalised states at the cut, without weight and bias of their norm, of passages read without a question.

        ids: int64 `(N, T)`; sizes: int32 `(N, T)`, 0 for padding; every passage needs a token. Returns `(N, T, d)`.
        """
        bias = _bias(sizes)
        states = self._run(self.embed_passages(ids), bias, settings.cut_layer - 1)
        last, norm = settings.cut_layer - 1, self.cut_norm(settings)
        summed, _ = self._attention(last, states, bias)
        if settings.cut_point == "layer_output":
            summed = self._feed_forward(last, self._after_attention(last, summed))
        return _normalise(norm, summed)

    def query_states(self, query: QueryBatch, layers: int) -> Tensor:
        """The states of questions that went alone through the first `layers` layers: `(B, Lq, d)`."""
        return self._run(self.embed_queries(query), _bias(query.sizes), layers)

    def from_cut(self, states: Tensor, settings: ReaderSettings) -> Tensor:
        """What the joint layers read of states at the cut `(..., d)`, with weight and bias of their norm."""
        if settings.cut_point == "layer_output":
            return states
        last = settings.cut_layer - 1
        return self._finish(last, self._feed_forward(last, states))

    def join(
        self,
        query: Tensor,
        query_sizes: Tensor,
        passages: Tensor,
        sizes: Tensor,
        first_layer: int,
        cut_layer: int,
        compression: Compression,
        trace: bool = False,
    ) -> Joint:
        """Runs the layers from `first_layer` (counted from 0) to the last over [question; passage].

        query: float `(B, Lq, d)` with sizes `(B, Lq)`; passages: float `(B, P, T, d)` with sizes `(B, P, T)`. trace:
        whether the layers behind the cut are traced, for training.
        """
        width = query_sizes.shape[1]
        shares = compression.of_layers(len(self.layers) - cut_layer)
        states, joint_sizes = beside(query, passages), beside(query_sizes, sizes)
        slots = columns(sizes.flatten(0, 1))
        bias, told_apart, traces = _bias(joint_sizes), None, []
        for index in range(first_layer, len(self.layers)):
            summed, seen = self._attention(index, states, bias)
            states = self._after_attention(index, summed)
            attention = partial(_of_query, *seen, query_sizes, bias)
            if index >= cut_layer and shares[index - cut_layer] < 1:
                keep = shares[index - cut_layer]
                before = states[:, width:]
                features = None if compression.similarity == "hamming" else _key_features(seen[1][..., width:, :])
                places = torch.arange(before.shape[1], dtype=torch.int32, device=before.device)
                places = places.expand(before.shape[:2])
                merged, left, _, slot = merge_passages(before, joint_sizes[:, width:], places, keep, features)
                moved = followed(slots, slot.long())
                lost = _rows(before, slots) - _rows(merged, moved)
                told_apart = lost if told_apart is None else told_apart + lost
                states = torch.cat([states[:, :width], merged], dim=1)
                joint_sizes = torch.cat([joint_sizes[:, :width], left], dim=1)
                slots, bias = moved, _bias(joint_sizes)
            states = self._finish(index, self._feed_forward(index, states))
            if trace and index >= cut_layer:
                traces.append(LayerTrace(states, width, slots, attention))
        final = states[:, width:] if told_apart is None else _rows(states[:, width:], slots) + told_apart
        return Joint(final, traces)

    def _run(self, states: Tensor, bias: Tensor, stop: int) -> Tensor:
        for index in range(stop):
            summed, _ = self._attention(index, states, bias)
            states = self._finish(index, self._feed_forward(index, self._after_attention(index, summed)))
        return states

    def _attention(self, index: int, states: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States plus attention, before the norm, and the heads' queries and keys `(N, heads, n, head_size)`."""
        attention = self.layers[index].attention
        own = attention.self
        query, key, value = (
            _linear(linear, states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for linear in (own.query, own.key, own.value)
        )
        mixed = _attend(query, key, value, bias)
        return states + _linear(attention.output.dense, mixed.transpose(1, 2).flatten(2)), (query, key)

    def _after_attention(self, index: int, summed: Tensor) -> Tensor:
        norm = self.layers[index].attention.output.LayerNorm
        return _affine(norm, _normalise(norm, summed))

    def _feed_forward(self, index: int, states: Tensor) -> Tensor:
        """States plus feed-forward, before the norm."""
        layer = self.layers[index]
        return states + _linear(layer.output.dense, F.gelu(_linear(layer.intermediate.dense, states)))

    def _finish(self, index: int, summed: Tensor) -> Tensor:
        norm = self.layers[index].output.LayerNorm
        return _affine(norm, _normalise(norm, summed))


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    # The product without gradients is another library's, and adds no bias.
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, linear.weight, linear.bias)
    return float_product(x, linear.weight) + linear.bias


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and torch.is_grad_enabled():
        # The gradient of PyTorch's fused kernel takes twice as long as that of the three steps (32 x 12 heads of 140
        # tokens, forward and backward: 148 ms against 54).
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias.to(query.dtype)
        return weights.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _normalise(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=norm.eps)


def _affine(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return torch.addcmul(norm.bias, x, norm.weight)


def _bias(sizes: Tensor) -> Tensor:
    """What is added to the attention logits of N sequences, `(N, 1, 1, n)`."""
    return size_bias(sizes, torch.float32)[:, None, None, :]


def _of_query(query: Tensor, key: Tensor, query_sizes: Tensor, bias: Tensor) -> Tensor:
    """`LayerTrace.attention` from a layer's queries and keys `(N, heads, n, head_size)`."""
    width = query_sizes.shape[1]
    logits = query[:, :, :width].float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = (logits + bias).softmax(-1)[..., width:].mean(1)
    counts = (query_sizes > 0).repeat_interleave(len(weights) // len(query_sizes), 0).to(weights.dtype)
    return (weights * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)


def _key_features(key: Tensor) -> Tensor:
    """What tokens are compared by besides their signs: the mean of the heads' keys (ToMe), `(N, n, head_size)`."""
    return key.float().mean(1)


def _rows(states: Tensor, slots: Tensor) -> Tensor:
    """The state `(N, T, d)` of the column that each original token is in; anything for padding."""
    return states.gather(1, slots.clamp(min=0)[..., None].expand(-1, -1, states.shape[-1]))
