"""The fusion-in-decoder encoder in all its forms: Atlas, DeFormer and BTR are one function over other inputs.

Atlas embeds the passage's tokens and joins at layer 0; DeFormer and BTR join at the cut layer k, on states that were
computed offline, as floats or as bits. On the same tokens DeFormer with k = 0 is Atlas to the bit, and BTR given
floats is DeFormer to the bit, because there is no second code path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from .attention import attend, attention_bias, distance_bias, rms_norm
from .batches import PassageBatch, QueryBatch
from .compression import merge_passages
from .linears import Linears, float_linear
from .settings import ReaderSettings
from .shares import Compression
from .stages import StageClock
from .states import FloatStates, Projections, States


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder attends to: states float `(B, S, d)` after the final norm, sizes int32 `(B, S)`, 0 = padding."""

    states: Tensor
    sizes: Tensor


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """What training looks at in a joint layer, of N = B * P sequences [query; passage].

    states: float `(N, width + n, d)` after the layer, the query in the first `width` columns. slots: int64 `(N, T)`:
    the column, counted behind the query, of each token that the passage came with, -1 for padding. attention: gives
    how much of its attention the query pays each column of the passage as the layer found it, float `(N, columns)`: the
    mean over heads and over the query's tokens. It is computed when asked for, since only a teacher's is.
    """

    states: Tensor
    width: int
    slots: Tensor
    attention: Callable[[], Tensor]

    def of_original_tokens(self, slots: Tensor) -> LayerTrace:
        """This trace of merged tokens told for those that they were merged from. slots: as `slots`, of the merge."""
        return replace(self, slots=followed(slots, self.slots))


class FusionEncoder:
    """Runs ranges of the encoder layers of a T5 v1.1 model. Holds no state of its own."""

    def __init__(self, model: T5ForConditionalGeneration, apply: Linears = float_linear):
        self.apply = apply
        self.embedding = model.shared
        self.blocks = model.encoder.block
        self.final_norm = model.encoder.final_layer_norm
        self.head_size = model.config.d_kv

    def floats(self, values: Tensor) -> FloatStates:
        """Float states `(..., d)` that are projected as this encoder projects."""
        return FloatStates(values, self.apply)

    def passage_states(self, ids: Tensor, sizes: Tensor, settings: ReaderSettings) -> Tensor:
        """The states at the cut of passages that are read without a query: the offline part.

        ids: int64 `(N, T)`; sizes: int32 `(N, T)`, 0 for padding; every passage needs a token. Returns `(N, T, d)`.
        """
        states = self.embedding(ids)
        bias = self._bias(sizes)
        whole_layers = settings.cut_layer - (settings.cut_point == "attention_output")
        states = self._run(states, bias, 0, whole_layers)
        if settings.cut_point == "attention_output":
            states, _ = self._attention(whole_layers, states, bias)
        return states

    def query_states(self, query: QueryBatch, layers: int) -> Tensor:
        """The states of queries that went alone through the first `layers` layers: `(B, Lq, d)`."""
        return self._run(self.embedding(query.ids), self._bias(query.sizes), 0, layers)

    def finish_cut_layer(self, states: States, cut_layer: int) -> FloatStates:
        """The feed-forward half of the cut layer, for passage states kept after its attention."""
        return self.floats(self._feed_forward(cut_layer - 1, states))

    def join(
        self,
        query: Tensor,
        query_sizes: Tensor,
        passages: States,
        batch: PassageBatch,
        first_layer: int,
        cut_layer: int,
        compression: Compression,
        clock: StageClock,
        trace: list[LayerTrace] | None = None,
    ) -> Memory:
        """Runs the layers from `first_layer` (counted from 0) to the last over [query; passage], and the final norm.

        query: float `(B, Lq, d)` with sizes `(B, Lq)`; passages: states `(B, P, T, d)`; batch gives their sizes and
        positions. Layers below `cut_layer` are timed as `lower_layers`: Atlas runs here what the others did offline.
        trace: a list that the joint layers are appended to, for training.
        """
        queries, width = query_sizes.shape
        count = batch.sizes.shape[1]
        sizes = beside(query_sizes, batch.sizes)
        shares = compression.of_layers(len(self.blocks) - cut_layer)
        positions = None
        if batch.positions is not None or min(*shares, compression.decoder) < 1:
            positions = self._joint_positions(width, batch)
        by_distance = self._distances(width + batch.span)
        states = None
        slots = columns(batch.sizes.flatten(0, 1)) if trace is not None else None
        bias = attention_bias(by_distance, sizes, positions)
        for index in range(first_layer, len(self.blocks)):
            with clock("lower_layers" if index < cut_layer else "joint_layers"):
                if states is None:
                    states, seen = self._joining_attention(index, self.floats(query), passages, bias)
                else:
                    states, seen = self._attention(index, states, bias)
                traced = trace is not None and index >= cut_layer
                attention = partial(seen.of_query, query_sizes, bias, self.head_size)
                if index >= cut_layer and shares[index - cut_layer] < 1:
                    merge = _Merge(width, shares[index - cut_layer], self._features(compression, seen.keys))
                    states, sizes, positions, slot = merge(states, sizes, positions)
                    bias = attention_bias(by_distance, sizes, positions)
                    if traced:
                        slots = followed(slots, slot.long())
                states = self._feed_forward(index, self.floats(states))
                if traced:
                    trace.append(LayerTrace(states, width, slots, attention))
        with clock("joint_layers"):
            if compression.decoder < 1:
                # There is no attention after the last layer whose keys could be compared: its states are.
                features = None if compression.similarity == "hamming" else states
                states, sizes, positions, _ = _Merge(width, compression.decoder, features)(states, sizes, positions)
            # A query's missing passages must not reach the decoder through the copy of the query beside them.
            present = (batch.sizes > 0).any(-1).reshape(-1, 1)
            sizes = torch.where(present, sizes, 0)
            states = states.reshape(queries, count * states.shape[1], -1)
            sizes = sizes.reshape(queries, -1)
            if not states.is_cuda:
                # On a GPU this would wait for the sizes, and padding is cheaper than that.
                states, sizes = _drop_padding(states, sizes)
            return Memory(rms_norm(states, self.final_norm), sizes)

    def _run(self, states: Tensor, bias: Tensor, start: int, stop: int) -> Tensor:
        for index in range(start, stop):
            states, _ = self._attention(index, states, bias)
            states = self._feed_forward(index, self.floats(states))
        return states

    def _attention(self, index: int, states: Tensor, bias: Tensor) -> tuple[Tensor, _Seen]:
        """The states after a layer's attention, and its queries and keys."""
        layer = self.blocks[index].layer[0]
        query, key, value = _heads(layer.SelfAttention, self.floats(states).normalised(layer.layer_norm))
        mixed = attend(query, key, value, bias, self.head_size)
        return states + self.apply(layer.SelfAttention.o, mixed), _Seen(query, key)

    def _joining_attention(self, index: int, query: States, passages: States, bias: Tensor) -> tuple[Tensor, _Seen]:
        """The same of the first joint layer. The query's rows are the same for all its passages: projected once."""
        layer = self.blocks[index].layer[0]
        of_query = _heads(layer.SelfAttention, query.normalised(layer.layer_norm))
        of_passages = _heads(layer.SelfAttention, passages.normalised(layer.layer_norm))
        joined = [beside(left, right) for left, right in zip(of_query, of_passages, strict=True)]
        mixed = attend(*joined, bias, self.head_size)
        states = beside(query.residual(), passages.residual()) + self.apply(layer.SelfAttention.o, mixed)
        return states, _Seen(*joined[:2])

    def _features(self, compression: Compression, keys: Tensor) -> Tensor | None:
        """What tokens are compared by besides the signs of their states: the mean of the heads' keys (ToMe)."""
        if compression.similarity == "hamming":
            return None
        return keys.unflatten(-1, (-1, self.head_size)).mean(2)

    def _feed_forward(self, index: int, states: States) -> Tensor:
        layer = self.blocks[index].layer[1]
        hidden = states.normalised(layer.layer_norm).geglu(layer.DenseReluDense.wi_0, layer.DenseReluDense.wi_1)
        return states.residual() + self.apply(layer.DenseReluDense.wo, hidden)

    def _distances(self, length: int) -> Tensor:
        return distance_bias(self.blocks[0].layer[0].SelfAttention, length, bidirectional=True)

    def _bias(self, sizes: Tensor) -> Tensor:
        return attention_bias(self._distances(sizes.shape[-1]), sizes)

    @staticmethod
    def _joint_positions(width: int, batch: PassageBatch) -> Tensor:
        """Columns of [query; passage], int32 `(B * P, width + T)`, for passage tokens that stand at given positions."""
        positions = batch.positions
        if positions is None:
            positions = torch.arange(batch.sizes.shape[-1], dtype=torch.int32, device=batch.sizes.device)
            positions = positions.expand(batch.sizes.shape)
        of_query = torch.arange(width, dtype=torch.int32, device=positions.device).expand(positions.shape[0], width)
        return beside(of_query, positions + width)


def _heads(attention, projections: Projections) -> tuple[Tensor, Tensor, Tensor]:
    return projections.each(attention.q, attention.k, attention.v)


def beside(query: Tensor, passages: Tensor) -> Tensor:
    """`(B, Lq, ...)` and `(B, P, T, ...)` -> `(B * P, Lq + T, ...)`: the query in front of each of its passages."""
    queries, count = passages.shape[:2]
    repeated = query[:, None].expand(queries, count, *query.shape[1:])
    return torch.cat([repeated, passages], dim=2).flatten(0, 1)


def followed(slots: Tensor, moved: Tensor) -> Tensor:
    """Where tokens are whose columns have moved. slots: their columns, int64 `(N, T)`, -1 for padding, which it stays;
    moved: the new column of each, int64 `(N, n)`."""
    return torch.where(slots < 0, -1, moved.gather(1, slots.clamp(min=0)))


def columns(sizes: Tensor) -> Tensor:
    """The column of every token, int64 `(N, T)`, -1 for padding."""
    return torch.where(sizes > 0, torch.arange(sizes.shape[1], device=sizes.device), -1)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Queries and keys of an attention over [query; passage], each `(N, n, inner)`."""

    queries: Tensor
    keys: Tensor

    def of_query(self, query_sizes: Tensor, bias: Tensor, head_size: int) -> Tensor:
        """`LayerTrace.attention` from the sizes `(B, width)` of the queries and the bias of the attention's logits."""
        width = query_sizes.shape[1]
        queries, keys = (x.unflatten(-1, (-1, head_size)).transpose(1, 2) for x in (self.queries[:, :width], self.keys))
        weights = (queries @ keys.transpose(-1, -2) + bias[:, :, :width]).softmax(-1)[..., width:].mean(1)
        # Rows of N = B * P; the padding of a shorter query attends too, but does not count.
        counts = (query_sizes > 0).repeat_interleave(len(weights) // len(query_sizes), 0).to(weights.dtype)
        return (weights * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class _Merge:
    """Merges the passage part of [query; passage]; the first `width` columns, the query, stay as they are."""

    width: int
    keep: float
    features: Tensor | None

    def __call__(self, states: Tensor, sizes: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The three after merging, and the slot of every column of the passage before it."""
        width = self.width
        features = None if self.features is None else self.features[:, width:]
        *merged, slot = merge_passages(states[:, width:], sizes[:, width:], positions[:, width:], self.keep, features)
        pairs = zip((states, sizes, positions), merged, strict=True)
        return *(torch.cat([old[:, :width], new], dim=1) for old, new in pairs), slot


def _drop_padding(states: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the tokens of each row to its front, in order, and cuts the row to the longest of the batch."""
    longest = int((sizes > 0).sum(1).max())
    if longest == sizes.shape[1]:
        return states, sizes
    order = (sizes == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[-1])), sizes.gather(1, order)
