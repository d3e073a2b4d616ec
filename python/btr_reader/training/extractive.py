"""Training of an extractive reader in any of its forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..encoder import LayerTrace, columns
from ..encoding import CALIBRATION_PASSAGES
from ..engine import Form
from ..extractive.answering import span_scores
from ..extractive.calibration import calibrated
from ..extractive.examples import SpanBatch, SpanBatches, SpanExample
from ..extractive.forward import ExtractiveModel, SpanOutput
from ..extractive.reader import ExtractiveReader
from ..extractive.spans import BLOCKED, span_divergence, span_loss
from ..sign_code import SignCode
from .extractive_settings import ExtractiveSettings
from .losses import distillation_loss, recovery_loss, top_tokens
from .run import TrainingRun, check_teacher, digest_of

# Statistics by vocabulary id need more text than a mean of each channel.
STATISTICS_PASSAGES = 8192


def student_of(
    reader: ExtractiveReader,
    form: Form,
    examples: Sequence[SpanExample],
    settings: ExtractiveSettings,
    progress: bool = False,
) -> ExtractiveReader:
    """The reader to train in this form, for BTR with a code of these settings.

    A reader that has one keeps it, with the scales that were trained: its code is of the same settings where it stores
    as many bits, has centroids or not, and is calibrated or not, as they say (a code of another cut is gone by then).
    Otherwise it is measured on the examples' passages. Raises `ValueError` for what `calibrated` refuses, and for
    passages that are longer than the reader has places for.
    """
    if form != "btr":
        return replace(reader, code=None)
    reader.check_passage_length(settings.passage_length)
    if _has_code_of(reader, settings):
        return reader
    passages = {passage.id: passage for example in examples for passage in example.passages}
    count = STATISTICS_PASSAGES if settings.masked_bits or settings.centroids else CALIBRATION_PASSAGES
    return calibrated(
        reader, list(passages.values())[:count], settings.passage_length,
        calibrate=settings.calibrate, masked_bits=settings.masked_bits, centroids=settings.centroids,
        progress=progress,
    )  # fmt: skip


def _has_code_of(reader: ExtractiveReader, settings: ExtractiveSettings) -> bool:
    code = reader.code
    if code is None:
        return False
    found = (code.stored_bits, code.centroids is not None, code.calibrated)
    return found == (settings.masked_bits, settings.centroids, settings.calibrate)


class SpanTeacher:
    """A teacher that students of several runs can share; what it remembers is kept for all of them."""

    def __init__(self, reader: ExtractiveReader):
        reader.model.requires_grad_(False)
        self.reader = reader
        self.model = ExtractiveModel(reader, "atlas").eval()
        self._known: dict[tuple[str, float], _Taught] = {}

    @torch.no_grad()
    def __call__(self, batch: SpanBatch, remember: float | None = None) -> SpanOutput:
        """What the teacher gives; remembered, states are only those of the share of tokens that a distillation counts.

        remember: that share (`top_tokens`), or None to ask the teacher anew.
        """
        if remember is None:
            return self.model(batch)
        names = [(name, remember) for name in batch.ids]
        if any(name not in self._known for name in names):
            taught = self.model(batch)
            attention = torch.stack([trace.attention() for trace in taught.traces])
            chosen = top_tokens(taught.traces, remember)
            for number, name in enumerate(names):
                self._known[name] = _Taught.of(taught, attention, chosen, batch.passages.sizes, number)
        return _together([self._known[name] for name in names], batch.passages.sizes)


@dataclass(frozen=True, eq=False)
class _Taught:
    """What a teacher gave for a question: logits `(2, P, T)`; by layer attention `(P, T)` and states `(n, d)` of the n
    tokens that are chosen, bool `(P, T)`."""

    logits: Tensor
    attention: Tensor
    chosen: Tensor
    states: Tensor

    @classmethod
    def of(cls, taught: SpanOutput, attention: Tensor, chosen: Tensor, sizes: Tensor, number: int) -> _Taught:
        count, width = sizes.shape[1], int((sizes[number] > 0).sum(-1).max())
        rows = slice(number * count, (number + 1) * count)
        wanted = chosen[rows, :width]
        states = [trace.states[rows, trace.width : trace.width + width][wanted].bfloat16() for trace in taught.traces]
        logits = torch.stack([taught.start[number, :, :width], taught.end[number, :, :width]])
        kept = (logits, attention[:, rows, :width], wanted)
        return cls(*(tensor.clone().cpu() for tensor in kept), torch.stack(states).cpu())


def _together(known: Sequence[_Taught], sizes: Tensor) -> SpanOutput:
    queries, count, width = sizes.shape
    layers, _, channels = known[0].states.shape
    logits = torch.full((2, queries, count, width), BLOCKED)
    states = torch.zeros(layers, queries, count, width, channels)
    attention = torch.zeros(layers, queries, count, width)
    for number, entry in enumerate(known):
        p, t = entry.chosen.shape
        logits[:, number, :p, :t] = entry.logits
        attention[:, number, :p, :t] = entry.attention
        states[:, number, :p, :t][:, entry.chosen] = entry.states.float()
    device, slots = sizes.device, columns(sizes.flatten(0, 1))
    logits, states, attention = logits.to(device), states.to(device), attention.to(device)
    traces = [
        LayerTrace(states[i].flatten(0, 1), 0, slots, lambda i=i: attention[i].flatten(0, 1)) for i in range(layers)
    ]
    return SpanOutput(logits[0], logits[1], traces)


class ExtractiveTrainer(TrainingRun):
    """Trains an extractive reader in one form and keeps the best by the dev set's F1, as a reader directory.

    The code of its bits is the reader's, if it is of these settings, or measured on the training questions when `train`
    begins; until then it is one of zeros.

    >>> trainer = ExtractiveTrainer(reader, "btr", settings, "out/", SpanTeacher(teacher))  # doctest: +SKIP
    >>> trainer.train(read_span_examples("train.jsonl"), dev)  # doctest: +SKIP
    {'step': 900, 'exact_match': 40.1, 'f1': 48.3}
    """

    best_by = "f1"

    def __init__(
        self,
        reader: ExtractiveReader,
        form: Form,
        settings: ExtractiveSettings,
        out: str | Path,
        teacher: SpanTeacher | None = None,
        progress: bool = True,
    ):
        """Raises `ValueError` where an objective needs a teacher that is not given, or a form what the reader lacks."""
        check_teacher(reader, None if teacher is None else teacher.reader, settings.objectives)
        if teacher is not None and teacher.reader.settings != reader.settings:
            raise ValueError(f"teacher: its joint layers begin elsewhere: expected {reader.settings}")
        reader.check_passage_length(settings.passage_length)
        if settings.frozen_layers > reader.settings.cut_layer:
            raise ValueError(f"frozen_layers must be at most the cut layer, got {settings.frozen_layers}")
        of_bits = settings.masked_bits or settings.centroids or not settings.calibrate
        if form != "btr" and (of_bits or settings.compression.offline < 1):
            raise ValueError(
                f"the {form} form is trained on all tokens and no bits: offline must be 1, masked_bits 0, centroids "
                "False and calibrate True"
            )
        if settings.masked_bits > reader.channels:
            raise ValueError(f"masked_bits must be at most the {reader.channels} channels, got {settings.masked_bits}")
        if form != "btr" and settings.objectives.recovery > 0:
            settings = replace(settings, objectives=replace(settings.objectives, recovery=0.0))
        super().__init__(settings, out, progress)
        self._measures_code = form == "btr" and not _has_code_of(reader, settings)
        if form != "btr":
            reader = replace(reader, code=None)
        elif self._measures_code:
            code = SignCode.blank(
                reader.channels, reader.tokenizer.vocabulary_size, places=reader.longest_passage * settings.centroids,
                masked=settings.masked_bits > 0, calibrated=settings.calibrate,
            )  # fmt: skip
            reader = replace(reader, code=code)
        self.reader, self.teacher = reader, teacher
        reader.model.requires_grad_(True)
        if settings.frozen_layers:
            reader.model.embeddings.requires_grad_(False)
            reader.model.encoder.layer[: settings.frozen_layers].requires_grad_(False)
        student = ExtractiveModel(reader, form, settings.compression, settings.surrogate, settings.same_id_first)
        if teacher is not None:
            teacher.model.to(self.accelerator.device)
        more = {"query_length": reader.query_length}
        if form == "btr" and not self._measures_code:
            more["code"] = digest_of(reader.code.state_dict().items())
        self._prepare(student, form, None if teacher is None else teacher.model, **more)

    def _begin(self, examples: Sequence[SpanExample]) -> None:
        if self._measures_code:
            plain = replace(self.reader, code=None)
            self._use_code(student_of(plain, "btr", examples, self.settings, self._progress_shown).code)

    def _batches(self, examples: Sequence[SpanExample]) -> SpanBatches:
        return batches_of(examples, self.reader, self.settings)

    def _losses(self, output: SpanOutput, batch: SpanBatch) -> dict[str, Tensor]:
        weights, losses = self.settings.objectives, {}
        if weights.answers:
            losses["answers"] = weights.answers * span_loss(*output.logits, batch.spans)
        if weights.recovery:
            losses["recovery"] = weights.recovery * recovery_loss(output.restored, output.states, output.sizes)
        if weights.need_teacher:
            taught = self.teacher(batch, weights.top_tokens if self.settings.remember_teacher else None)
            if weights.distillation:
                error = distillation_loss(output.traces, taught.traces, weights.top_tokens)
                losses["distillation"] = weights.distillation * error
            if weights.divergence:
                losses["divergence"] = weights.divergence * span_divergence(output.logits, taught.logits)
        return losses

    def _scores(self, dev: Sequence[SpanExample]) -> dict[str, float]:
        with self._rounding():
            return span_scores(self.student, self._batches(dev), self.settings.answer_length)

    def _save(self, directory: Path) -> None:
        self.reader.save(directory)


def batches_of(examples: Sequence[SpanExample], reader: ExtractiveReader, settings: ExtractiveSettings) -> SpanBatches:
    """The examples as batches that this reader is trained on."""
    return SpanBatches(
        examples, reader.tokenizer, batch_size=settings.batch_size, passages=settings.passages,
        passage_length=settings.passage_length, query_length=reader.query_length, seed=settings.seed,
    )  # fmt: skip
