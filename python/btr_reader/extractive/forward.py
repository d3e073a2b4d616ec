"""An extractive reader's forms, with gradients and from a store: one way through the layers for both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..batches import PassageBatch, QueryBatch
from ..encoder import LayerTrace
from ..engine import Form
from ..shares import Compression
from ..training.settings import Surrogate
from ..training.signs import binary_signs, merge_signs
from .encoder import BertFusionEncoder
from .examples import SpanBatch
from .reader import ExtractiveReader
from .spans import BLOCKED


@dataclass(frozen=True, eq=False)
class SpanOutput:
    """start, end: logits `(B, P, T)`; traces of the joint layers; for BTR the float states at the cut, what is restored
    of them, both `(B, P, T, d)`, and the passages' sizes `(B, P, T)`, all before merging."""

    start: Tensor
    end: Tensor
    traces: list[LayerTrace]
    states: Tensor | None = None
    restored: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        """Start and end `(B, P * T)`, over all passages of a question."""
        return self.start.flatten(1), self.end.flatten(1)


class ExtractiveModel(nn.Module):
    """An extractive reader in one of its forms.

    compression: merging that a BTR student learns to live with: its offline share as `PassageEncoder` does it, with
    the same same_id_first, its joint share while reading. There is no decoder to merge for. Raises `ValueError` for a
    form that the reader lacks.
    """

    def __init__(
        self,
        reader: ExtractiveReader,
        form: Form,
        compression: Compression | None = None,
        surrogate: Surrogate | None = None,
        same_id_first: bool = False,
    ):
        super().__init__()
        compression = compression or Compression()
        if form == "btr" and reader.code is None:
            raise ValueError("the reader has no code for bits yet: calibrate it")
        if compression.decoder != 1:
            raise ValueError(f"decoder: an extractive reader has none to merge for, got {compression.decoder}")
        if form == "atlas" and compression.joint != 1:
            raise ValueError("joint: the undecomposed reader keeps all tokens")
        self.model, self.head = reader.model, reader.head
        self.code = reader.code if form == "btr" else None
        # A reader with a code can still be read on floats; those are kept as they are.
        self.reader, self.form = reader if form == "btr" else replace(reader, code=None), form
        self.compression, self.surrogate = compression, surrogate or Surrogate()
        self.same_id_first = same_id_first

    @property
    def encoder(self) -> BertFusionEncoder:
        return BertFusionEncoder(self.model, self.reader.query_length)

    def forward(self, batch: SpanBatch, progress: float = 0.0, trace: bool = True) -> SpanOutput:
        """progress: the share of the training that is done, for surrogates that are annealed."""
        encoder, passages, settings = self.encoder, batch.passages, self.reader.settings
        if self.form == "atlas":
            states = encoder.embed_passages(passages.content)
            return self._joint(batch.query, states, passages.sizes, None, batch.allowed, trace)
        normalised = self._offline(encoder, passages)
        norm = encoder.cut_norm(settings)
        floats = torch.addcmul(norm.bias, normalised, norm.weight)
        if self.form == "deformer":
            states = encoder.from_cut(floats, settings)
            return self._joint(batch.query, states, passages.sizes, None, batch.allowed, trace)
        ids = passages.content
        signs = binary_signs(self.code.deviation(normalised, ids), self.surrogate.at(progress))
        restored = self.code.restore(signs, ids)
        sizes, slots, read = passages.sizes, None, restored
        if self.compression.offline < 1:
            signs, merged, slots = merge_signs(signs, passages, self.compression.offline, self.same_id_first)
            # A merged token is read as its earliest token.
            kept = ids.gather(2, merged.positions.long())
            read, sizes = self.code.restore(signs, kept, merged.positions), merged.sizes
        output = self._joint(batch.query, encoder.from_cut(read, settings), sizes, slots, batch.allowed, trace)
        return replace(output, states=floats, restored=restored, sizes=passages.sizes)

    @torch.no_grad()
    def from_store(
        self, query: QueryBatch, stored: PassageBatch, ids: Tensor, slots: Tensor | None, allowed: Tensor
    ) -> SpanOutput:
        """The same from what a store gives back: `Store.fetch`, and by original token what it is read through.

        stored: bits uint8 `(B, P, n, w)` for `btr`, normalised states `(B, P, n, d)` for `deformer`. ids: int64
        `(B, P, n)`, the vocabulary id that each kept token is read through. slots: int64 `(B * P, T)`, the kept token
        of every original one, -1 for padding; None where all were kept. allowed: bool `(B, P, T)`.
        """
        encoder, settings = self.encoder, self.reader.settings
        if self.form == "btr":
            states = self.code.restore_bits(stored.content.to(ids.device), ids, stored.positions)
        elif self.form == "deformer":
            norm = encoder.cut_norm(settings)
            states = torch.addcmul(norm.bias, stored.content, norm.weight)
        else:
            raise ValueError("form: the undecomposed reader reads no store")
        return self._joint(query, encoder.from_cut(states, settings), stored.sizes, slots, allowed, False)

    def _offline(self, encoder: BertFusionEncoder, passages: PassageBatch) -> Tensor:
        """Normalised states at the cut `(B, P, T, d)`; missing passages, which have no token, stay 0."""
        ids, sizes = passages.content.flatten(0, 1), passages.sizes.flatten(0, 1)
        present = (sizes > 0).any(1)
        states = encoder.passage_states(ids[present], sizes[present], self.reader.settings)
        everything = states.new_zeros((len(ids), *states.shape[1:])).index_put((present.nonzero()[:, 0],), states)
        return everything.unflatten(0, passages.sizes.shape[:2])

    def _joint(
        self, query: QueryBatch, passages: Tensor, sizes: Tensor, slots: Tensor | None, allowed: Tensor, trace: bool
    ) -> SpanOutput:
        encoder, cut = self.encoder, self.reader.settings.cut_layer
        first = 0 if self.form == "atlas" else cut
        joint = encoder.join(
            encoder.query_states(query, first), query.sizes, passages, sizes, first, cut, self.compression, trace
        )
        # By token first: a slot's logits are those of all its tokens.
        logits = nn.functional.linear(joint.states, self.head.weight, self.head.bias).float()
        traces = joint.traces
        if slots is not None:
            logits = logits.gather(1, slots.clamp(min=0)[..., None].expand(-1, -1, 2))
            traces = [trace.of_original_tokens(slots) for trace in traces]
        logits = logits.unflatten(0, allowed.shape[:2]).masked_fill(~allowed[..., None], BLOCKED)
        return SpanOutput(logits[..., 0], logits[..., 1], traces)
