"""A reader's forms with gradients: the same encoder as for reading, and the decoder over whole targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from ..attention import attend, rms_norm, size_bias
from ..batches import PassageBatch, QueryBatch
from ..decoder import CrossMemory, GreedyDecoder, causal_bias
from ..encoder import FusionEncoder, LayerTrace, Memory
from ..engine import Form
from ..settings import ReaderSettings
from ..shares import Compression
from ..sign_code import SignCode, mask_signs
from ..stages import StageClock
from ..states import FloatStates, States
from ..store import TokenTables
from .settings import Surrogate
from .signs import SignStates, binary_signs, merge_signs


@dataclass(frozen=True, eq=False)
class Batch:
    """Questions to train on.

    query: B queries. passages: token ids `(B, P, T)`. targets: int64 `(B, L)`, padded behind the end token.
    """

    query: QueryBatch
    passages: PassageBatch
    targets: Tensor

    @property
    def questions(self) -> int:
        return len(self.targets)

    @property
    def tokens(self) -> int:
        """Passage tokens, padding not counted."""
        return int((self.passages.sizes > 0).sum())

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.query.to(device), self.passages.to(device), self.targets.to(device))


@dataclass(frozen=True, eq=False)
class Output:
    """logits `(B, L, V)` of the targets; traces of the joint layers; for BTR the float states at the cut, what is
    restored of them, both `(B, P, T, d)`, and the passages' sizes `(B, P, T)`, all before merging."""

    logits: Tensor
    traces: list[LayerTrace]
    states: Tensor | None = None
    restored: Tensor | None = None
    sizes: Tensor | None = None


class TrainableReader(nn.Module):
    """A T5 reader in one of its forms, for training.

    residual_scale: rho `(d,)`, a parameter of the `btr` form; None trains it without calibration. code: what restores
    bits of the `btr` form instead, a module that is trained as it is; it brings its own tables. compression: merging
    that the student learns to live with; its offline share as `btr encode --keep`, the others as in reading.
    same_id_first, masked_vocabulary: as `btr encode --same-id-first` and `--masked-bits`, of the `btr` form; for masked
    bits the number of vocabulary ids, whose tables `use_tables` gives before anything else. 0 masks none.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        settings: ReaderSettings,
        form: Form,
        residual_scale: Tensor | None = None,
        compression: Compression | None = None,
        surrogate: Surrogate | None = None,
        same_id_first: bool = False,
        masked_vocabulary: int = 0,
        code: SignCode | None = None,
    ):
        super().__init__()
        self.model = model
        self.code = code
        self.settings = settings
        self.form = form
        self.residual_scale = None if residual_scale is None else nn.Parameter(residual_scale.detach().clone())
        self.compression = compression or Compression()
        self.surrogate = surrogate or Surrogate()
        self.same_id_first = same_id_first
        # Of the checkpoint as weights are: training goes on with the tables that it was stopped with.
        width = -(-model.config.d_model // 8)
        for name in ("mask", "majority"):
            empty = torch.zeros(masked_vocabulary, width, dtype=torch.uint8) if masked_vocabulary else None
            self.register_buffer(name, empty)

    def use_tables(self, tables: TokenTables) -> None:
        """The tables of masked bits from now on."""
        self.mask.copy_(torch.from_numpy(tables.mask))
        self.majority.copy_(torch.from_numpy(tables.majority))

    def forward(self, batch: Batch, progress: float = 0.0) -> Output:
        """progress: the share of the training that is done, for surrogates that are annealed."""
        traces: list[LayerTrace] = []
        memory, slots, extra = self._encode(batch.query, batch.passages, progress, traces)
        if slots is not None:
            traces = [trace.of_original_tokens(slots) for trace in traces]
        return Output(target_logits(self.model, memory, batch.targets), traces, **extra)

    @torch.no_grad()
    def cross_memory(self, decoder: GreedyDecoder, query: QueryBatch, passages: PassageBatch) -> CrossMemory:
        """What a decoder of this model answers from, as the reader that is trained would read."""
        memory, _, _ = self._encode(query, passages, 1.0, None)
        return decoder.project(memory)

    def _encode(
        self, query: QueryBatch, passages: PassageBatch, progress: float, traces: list[LayerTrace] | None
    ) -> tuple[Memory, Tensor | None, dict[str, Tensor]]:
        """The decoder's memory, the slots of merging offline, if there is any, and the fields of `Output`."""
        encoder = FusionEncoder(self.model)
        first_layer = 0 if self.form == "atlas" else self.settings.cut_layer
        query_states = encoder.query_states(query, first_layer)
        extra, slots = {}, None
        if self.form == "atlas":
            states = encoder.floats(encoder.embedding(passages.content))
        else:
            floats = self._offline(encoder, passages)
            if self.form == "btr":
                states, passages, extra, slots = self._binary(floats, passages, progress)
            else:
                states = encoder.floats(floats)
            if self.settings.cut_point == "attention_output":
                states = encoder.finish_cut_layer(states, self.settings.cut_layer)
        memory = encoder.join(
            query_states,
            query.sizes,
            states,
            passages,
            first_layer,
            self.settings.cut_layer,
            self.compression,
            StageClock(),
            traces,
        )
        return memory, slots, extra

    def _offline(self, encoder: FusionEncoder, passages: PassageBatch) -> Tensor:
        """The float states at the cut `(B, P, T, d)`; missing passages, which have no token, stay 0."""
        ids, sizes = passages.content.flatten(0, 1), passages.sizes.flatten(0, 1)
        present = (sizes > 0).any(1)
        states = encoder.passage_states(ids[present], sizes[present], self.settings)
        everything = states.new_zeros((len(ids), *states.shape[1:])).index_put((present.nonzero()[:, 0],), states)
        return everything.unflatten(0, passages.sizes.shape[:2])

    def _binary(
        self, floats: Tensor, passages: PassageBatch, progress: float
    ) -> tuple[States, PassageBatch, dict[str, Tensor], Tensor | None]:
        """What the joint layers read, its batch, the fields of `Output`, and the slots of merging, if there is any."""
        ids = passages.content
        deviation = floats if self.code is None else self.code.deviation(floats, ids)
        signs = binary_signs(deviation, self.surrogate.at(progress))
        whole = self._restored(signs, ids, None)
        extra = {"states": floats, "restored": whole.residual(), "sizes": passages.sizes}
        if self.compression.offline == 1:
            return whole, passages, extra, None
        # A store restores what is left after merging by id and place of the earliest token that went there.
        signs, merged, slots = merge_signs(signs, passages, self.compression.offline, self.same_id_first)
        kept = ids.gather(-1, merged.positions.long())
        return self._restored(signs, kept, merged.positions), merged, extra, slots

    def _restored(self, signs: Tensor, ids: Tensor, positions: Tensor | None) -> States:
        if self.code is not None:
            return FloatStates(self.code.restore(signs, ids, positions))
        if self.mask is not None:
            signs = mask_signs(signs, ids, self.mask, self.majority)
        return SignStates(signs, self.residual_scale, self.settings.cut_point)


def target_logits(model: T5ForConditionalGeneration, memory: Memory, targets: Tensor) -> Tensor:
    """The decoder's logits `(B, L, V)` of every target token given those before it (teacher forcing)."""
    decoder, head_size = model.decoder, model.config.d_kv
    start = torch.full_like(targets[:, :1], model.config.decoder_start_token_id)
    states = model.shared(torch.cat([start, targets[:, :-1]], dim=1))
    bias = causal_bias(decoder.block[0].layer[0].SelfAttention, targets.shape[1])[None]
    cross_bias = size_bias(memory.sizes, states.dtype)[:, None, None, :]
    for block in decoder.block:
        own, crossing, feed_forward = block.layer
        attention, normed = own.SelfAttention, rms_norm(states, own.layer_norm)
        mixed = attend(attention.q(normed), attention.k(normed), attention.v(normed), bias, head_size)
        states = states + attention.o(mixed)
        attention, normed = crossing.EncDecAttention, rms_norm(states, crossing.layer_norm)
        mixed = attend(
            attention.q(normed), attention.k(memory.states), attention.v(memory.states), cross_bias, head_size
        )
        states = states + attention.o(mixed)
        dense, normed = feed_forward.DenseReluDense, rms_norm(states, feed_forward.layer_norm)
        states = states + dense.wo(F.gelu(dense.wi_0(normed), approximate="tanh") * dense.wi_1(normed))
    return model.lm_head(rms_norm(states, decoder.final_layer_norm))
