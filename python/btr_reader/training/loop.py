"""Training of a T5 reader in any of its forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..answering import choice
from ..centroids import centroid_code
from ..decoder import GreedyDecoder
from ..engine import Form
from ..evaluation import evaluate_results
from ..passages import Passage
from ..reader import Reader
from ..sign_code import SignCode
from ..states import after_the_cut
from ..tasks import TaskName
from ..token_statistics import TokenStatistics, calibrate
from ..tokenizer import ReaderTokenizer
from .examples import Batches, Example
from .forward import Batch, Output, TrainableReader
from .losses import distillation_loss, output_divergence, recovery_loss, task_loss
from .run import BEST, TrainingRun, check_teacher, digest_of
from .settings import TrainingSettings


class Trainer(TrainingRun):
    """Trains a reader in one form and keeps the best by its task's metric on the dev set, as a reader directory.

    That is the exact match, for fever and mmlu the accuracy. A code that settings with centroids ask for is that of the
    reader, or measured on the training questions when `train` begins.

    >>> trainer = Trainer(reader, "btr", settings, "out/", teacher)  # doctest: +SKIP
    >>> trainer.train(read_examples("train.jsonl", "nq", reader.tokenizer), dev)  # doctest: +SKIP
    {'step': 1800, 'exact_match': 93.1, 'f1': 93.4}
    """

    def __init__(
        self,
        reader: Reader,
        form: Form,
        settings: TrainingSettings,
        out: str | Path,
        teacher: Reader | None = None,
        progress: bool = True,
        task: TaskName = "nq",
    ):
        """task: whose metrics the dev set's scores are.

        Raises `ValueError` where an objective needs a teacher that is not given, or a form what the reader lacks.
        """
        check_teacher(reader, teacher, settings.objectives)
        coded = form == "btr" and settings.centroids
        if form != "btr" and (settings.compression.offline < 1 or settings.masked_bits or settings.centroids):
            raise ValueError(
                f"the {form} form is trained on all tokens and no bits: offline must be 1, masked_bits 0, and "
                "centroids False"
            )
        if form == "btr" and settings.calibrate and not coded and reader.residual_scale is None:
            if reader.code is not None:
                raise ValueError("centroids is False, but the reader was trained with them and has no residual scale")
            raise ValueError("the reader has no residual scale yet: run btr calibrate on it")
        if not coded:
            reader = replace(reader, code=None)
        if settings.masked_bits > reader.channels:
            raise ValueError(f"masked_bits must be at most the {reader.channels} channels, got {settings.masked_bits}")
        if form != "btr" and settings.objectives.recovery > 0:
            settings = replace(settings, objectives=replace(settings.objectives, recovery=0.0))
        super().__init__(settings, out, progress)
        self._measures_code = coded and not _fits(reader.code, settings)
        if self._measures_code:
            code = SignCode.blank(
                reader.channels, reader.tokenizer.vocabulary_size, places=settings.passage_length,
                masked=settings.masked_bits > 0,
            )  # fmt: skip
            reader = replace(reader, residual_scale=None, code=code)
        self.reader, self.task = reader, task
        if task in ("fever", "mmlu"):
            self.best_by = "accuracy"
        # Chosen anew in training, unless a code has its own.
        self._masks = bool(settings.masked_bits) and not coded
        scale = reader.residual_scale if form == "btr" and settings.calibrate else None
        reader.model.float().requires_grad_(True)
        if form == "btr" and not settings.calibrate:
            # Plain signs go past the norm's scale; reading applies it, so it must be 1 there.
            norm, _ = after_the_cut(reader.model, reader.settings)
            norm.weight.requires_grad_(False).fill_(1)
        student = TrainableReader(
            reader.model,
            reader.settings,
            form,
            scale,
            settings.compression,
            settings.surrogate,
            settings.same_id_first,
            reader.tokenizer.vocabulary_size if self._masks else 0,
            reader.code if coded else None,
        )
        self._statistics: TokenStatistics | None = None
        self._sample: list[Passage] = []
        self.teacher = None
        if teacher is not None:
            teacher.model.requires_grad_(False)
            self.teacher = TrainableReader(teacher.model, reader.settings, "atlas").to(self.accelerator.device)
        kept = {"code": digest_of(reader.code.state_dict().items())} if coded and not self._measures_code else {}
        self._prepare(student, form, self.teacher, **kept)

    def _begin(self, examples: Sequence[Example]) -> None:
        if self._masks:
            self._measure()
        if self._measures_code:
            plain = replace(self.reader, code=None)
            self._use_code(with_code(plain, examples, self.settings, self._progress_shown).code)

    def _batches(self, examples: Sequence[Example]) -> Batches:
        self._sample = passages_of(examples)[: self.settings.statistics_passages]
        return Batches(examples, self.reader.tokenizer, self.settings)

    def _measure(self) -> None:
        """Chooses masked bits anew, as the bits are by now."""
        _, self._statistics = calibrate(self.trained(), self._sample, self.settings.passage_length)
        self.student.use_tables(self._statistics.tables(self.settings.masked_bits))

    def _losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        weights, losses = self.settings.objectives, {}
        if weights.answers:
            losses["answers"] = weights.answers * task_loss(output.logits, batch.targets)
        if weights.recovery:
            losses["recovery"] = weights.recovery * recovery_loss(output.restored, output.states, output.sizes)
        if weights.need_teacher:
            with torch.no_grad():
                taught = self.teacher(batch)
            if weights.distillation:
                error = distillation_loss(output.traces, taught.traces, weights.top_tokens)
                losses["distillation"] = weights.distillation * error
            if weights.divergence:
                kl = output_divergence(output.logits, taught.logits, batch.targets)
                losses["divergence"] = weights.divergence * kl
        return losses

    def _scores(self, dev: Sequence[Example]) -> dict[str, float]:
        if self._masks:
            self._measure()
        return evaluate(self.student, dev, self.reader.tokenizer, self.settings, self.task)

    def _save(self, directory: Path) -> None:
        self.trained().save(directory)
        if self._statistics is not None:
            self._statistics.save(directory, self.reader.settings)

    def trained(self) -> Reader:
        """The reader as it is now, with the scale of its form or the code that was trained.

        Raises `RuntimeError` while there is no code: `train` measures it, unless the run was done before.
        """
        if self.reader.code is not None:
            if not self.reader.code.weight.any():
                raise RuntimeError(
                    f"the code is measured when training begins; the best reader is in {self.out / BEST}"
                )
            return self.reader
        scale = self.student.residual_scale
        if self.form == "btr" and scale is None:
            scale = torch.ones(self.reader.config.d_model)
        scale = self.reader.residual_scale if scale is None else scale.detach().cpu()
        return replace(self.reader, residual_scale=scale)


def with_code(
    reader: Reader, examples: Sequence[Example], settings: TrainingSettings, progress: bool = False
) -> Reader:
    """The reader with the code that a student with centroids starts from: its own, if that stores as many bits and
    knows places enough, or one that is measured on passages of the examples, `statistics_passages` at most."""
    if _fits(reader.code, settings):
        return reader
    plain = replace(reader, residual_scale=None, code=None)
    norm, _ = after_the_cut(reader.model, reader.settings)
    ones = torch.ones(reader.channels)
    code = centroid_code(
        plain, passages_of(examples)[: settings.statistics_passages], settings.passage_length,
        weight=ones, bias=torch.zeros_like(ones), importance=norm.weight.detach().float().cpu(),
        masked_bits=settings.masked_bits, progress=progress,
    )  # fmt: skip
    return replace(plain, code=code.to(reader.device))


def _fits(code: SignCode | None, settings: TrainingSettings) -> bool:
    return code is not None and code.stored_bits == settings.masked_bits and len(code.places) >= settings.passage_length


def passages_of(examples: Sequence[Example]) -> list[Passage]:
    """The passages of the examples, each once."""
    return list({passage.id: passage for example in examples for passage in example.passages}.values())


def evaluate(
    student: TrainableReader,
    examples: Sequence[Example],
    tokenizer: ReaderTokenizer,
    settings: TrainingSettings,
    task: TaskName = "nq",
) -> dict[str, float]:
    """The task's metrics in percent (see `evaluate_file`) of the answers that the student gives: greedy ones, or the
    best of the choices."""
    student.eval()
    device = next(student.parameters()).device
    batches, decoder = Batches(examples, tokenizer, settings), GreedyDecoder(student.model)
    results = []
    for start in range(0, len(examples), settings.batch_size):
        chunk = examples[start : start + settings.batch_size]
        batch = batches.batch(chunk).to(device)
        for reply, example in zip(_replies(student, decoder, chunk, batch, tokenizer, settings), chunk, strict=True):
            where = f"dev question {len(results)}"
            results.append((where, {"answers": example.answers, "metadata": example.metadata, **reply}))
    return {name: score for name, score in evaluate_results(results, task).items() if name != "questions"}


@torch.no_grad()
def _replies(
    student: TrainableReader,
    decoder: GreedyDecoder,
    examples: Sequence[Example],
    batch: Batch,
    tokenizer: ReaderTokenizer,
    settings: TrainingSettings,
) -> list[dict[str, Any]]:
    """The fields of Atlas' results that the student gives."""
    letters, cross = examples[0].choices, student.cross_memory(decoder, batch.query, batch.passages)
    if not letters:
        generated = decoder.generate(cross, settings.target_length).tolist()
        return [{"generation": tokenizer.decode(ids)} for ids in generated]
    if any(example.choices != letters for example in examples):
        raise ValueError("dev: all questions must have the same choices")
    ids = [tokenizer.letter_id(letter) for letter in letters]
    logits = decoder.logits_after(cross, [tokenizer.sentinel])[:, ids].tolist()
    return [choice(dict(zip(letters, row, strict=True))) for row in logits]
