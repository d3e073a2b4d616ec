"""Reading: one engine for the Atlas, DeFormer and BTR forms of a reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .batches import PassageBatch, QueryBatch
from .decoder import CrossMemory, GreedyDecoder
from .encoder import FusionEncoder, Memory
from .linears import Int8Linears, LinearPrecision, float_linear
from .reader import Reader
from .shares import PRESETS, Compression
from .stages import StageClock
from .states import BinaryCode, BinaryStates, States
from .store import Store

Form = Literal["atlas", "deformer", "btr"]


class ReaderEngine:
    """Runs a reader in one of its forms.

    - `atlas`: passages are token ids, all encoder layers run jointly over [query; passage];
    - `deformer`: passages are float states kept at the cut, the query goes through the lower layers alone;
    - `btr`: the same with packed bits.

    Everything else is the same code for all of them. An engine is made for the weights as they are: after moving or
    replacing them, make another.

    Decomposition: DeFormer (Cao et al. 2020); binary states: BTR (arXiv 2310.01329).

    >>> engine = ReaderEngine(reader, "btr", Compression(joint=0.8, decoder=0.5))  # doctest: +SKIP
    >>> engine.generate(pad_queries([query_ids]), engine.fetch(store, [passage_ids]), 16)  # doctest: +SKIP
    [[32099, 3, 9, 1]]
    """

    def __init__(
        self,
        reader: Reader,
        form: Form,
        compression: Compression = PRESETS["none"],
        precision: str = "exact",
        linears: LinearPrecision = "float",
        *,
        beside: ReaderEngine | None = None,
    ):
        """compression: its joint and decoder shares apply here. precision: of the projections of bits. linears: of all
        other projections; `int8` quantizes weights and inputs (see `Int8Linears`), on a CPU only. beside: an engine for
        the same model and linears, whose copies of weights (of the decoder, at base 0.5 GB), as they were when
        it was made, are used instead of others.

        Raises `ValueError` for the `btr` form of a reader that was not calibrated, for shares of another number of
        joint layers than the reader has, and for an engine of another model or other linears.
        """
        for name, value, known in (("form", form, Form), ("linears", linears, LinearPrecision)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        compression.of_layers(reader.config.num_layers - reader.settings.cut_layer)
        self.form = form
        self.reader = reader
        self.compression = compression
        self.linears = linears
        if beside is None:
            self.decoder = GreedyDecoder(reader.model, float_linear if linears == "float" else Int8Linears())
        elif isinstance(beside, ReaderEngine) and beside.reader.model is reader.model and beside.linears == linears:
            self.decoder = beside.decoder
        else:
            raise ValueError("beside must be an engine for the same model and linears")
        self.encoder = FusionEncoder(reader.model, self.decoder.apply)
        self._code = None
        if form == "btr":
            if not reader.calibrated:
                raise ValueError("the reader has no residual scale yet: run btr calibrate on it")
            if reader.code is None:
                self._code = BinaryCode(reader.model, reader.settings, reader.residual_scale, precision)

    def fetch(self, store: Store, passage_ids: Sequence[Sequence[str]]) -> PassageBatch:
        """What the form reads of the passages of each query. A missing id is a `KeyError`."""
        if self.form == "atlas":
            return store.fetch_tokens(passage_ids)
        return store.fetch(passage_ids, with_ids=self.form == "btr" and self.reader.code is not None)

    @torch.inference_mode()
    def encode(self, query: QueryBatch, passages: PassageBatch, clock: StageClock | None = None) -> Memory:
        """The decoder's memory of B queries over their passages. Their content is what the form reads."""
        clock = clock or StageClock()
        settings = self.reader.settings
        query, passages = query.to(self.reader.device), passages.to(self.reader.device)
        if query.ids.shape[0] != passages.sizes.shape[0]:
            raise ValueError(f"passages are of {passages.sizes.shape[0]} queries, but there are {query.ids.shape[0]}")
        first_layer = 0 if self.form == "atlas" else settings.cut_layer
        with clock("lower_layers"):
            query_states = self.encoder.query_states(query, first_layer)
        with clock("restore"):
            states = self._states(passages)
            if self.form != "atlas" and settings.cut_point == "attention_output":
                states = self.encoder.finish_cut_layer(states, settings.cut_layer)
        return self.encoder.join(
            query_states, query.sizes, states, passages, first_layer, settings.cut_layer, self.compression, clock
        )

    def _states(self, passages: PassageBatch) -> States:
        content, d = passages.content, self.reader.config.d_model
        if self.form == "atlas":
            _check_content(
                content, self.form, "int64 ids (B, P, T)", content.dtype == torch.int64 and content.ndim == 3
            )
            return self.encoder.floats(self.encoder.embedding(content))
        if content.dtype == torch.uint8 and self.form == "btr":
            right = content.ndim == 4 and content.shape[-1] == -(-d // 8)
            _check_content(content, self.form, f"uint8 bits (B, P, T, {-(-d // 8)})", right)
            if self._code is None:
                return self.encoder.floats(self._restored(passages))
            return (
                BinaryStates(content, self._code)
                if content.device == self.reader.device
                else self._code.restore(content)
            )
        right = content.is_floating_point() and content.ndim == 4 and content.shape[-1] == d
        _check_content(content, self.form, f"float states (B, P, T, {d})", right)
        return self.encoder.floats(content.to(self.reader.dtype))

    def _restored(self, passages: PassageBatch) -> Tensor:
        """States `(B, P, T, d)` in the model's dtype, of bits that the reader's code restores."""
        reader = self.reader
        if passages.ids is None:
            raise ValueError("passages: the reader's code needs the tokens' ids: fetch them with_ids=True")
        bits = passages.content.to(reader.device, non_blocking=True)
        return reader.code.restore_bits(bits, passages.ids, passages.positions).to(reader.dtype)

    @torch.inference_mode()
    def cross_memory(self, query: QueryBatch, passages: PassageBatch, clock: StageClock | None = None) -> CrossMemory:
        """Encodes, and projects the decoder's cross-attention keys and values."""
        clock = clock or StageClock()
        memory = self.encode(query, passages, clock)
        with clock("cross_projection"):
            return self.decoder.project(memory)

    @torch.inference_mode()
    def generate(
        self,
        query: QueryBatch,
        passages: PassageBatch,
        max_new_tokens: int,
        *,
        stop_at_end: bool = True,
        clock: StageClock | None = None,
    ) -> list[list[int]]:
        """Greedy answers: the token ids of each query, special tokens included (see `GreedyDecoder.generate`)."""
        clock = clock or StageClock()
        cross = self.cross_memory(query, passages, clock)
        with clock("decoding"):
            return self.decoder.generate(cross, max_new_tokens, stop_at_end=stop_at_end).tolist()

    @torch.inference_mode()
    def choice_logits(self, query: QueryBatch, passages: PassageBatch, choices: Sequence[int]) -> Tensor:
        """Logits `(B, len(choices))` of the choice tokens at decoder position 1, after the sentinel."""
        logits = self.decoder.logits_after(self.cross_memory(query, passages), [self.reader.tokenizer.sentinel])
        return logits[:, list(choices)]


def _check_content(content: Tensor, form: str, expected: str, right: bool) -> None:
    if not right:
        raise ValueError(f"passages for the {form} form must be {expected}, got {content.dtype} {tuple(content.shape)}")
