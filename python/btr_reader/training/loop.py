"""Training of a T5 reader in any of its forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..engine import Form
from ..metrics import best_f1, exact_match
from ..reader import Reader
from ..states import after_the_cut
from .examples import Batches, Example
from .forward import Batch, Output, TrainableReader
from .losses import distillation_loss, output_divergence, recovery_loss, task_loss
from .run import TrainingRun, check_teacher
from .settings import TrainingSettings


class Trainer(TrainingRun):
    """Trains a reader in one form and keeps the best by the dev set's exact match, as a reader directory.

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
    ):
        """Raises `ValueError` where an objective needs a teacher that is not given, or a form what the reader lacks."""
        check_teacher(reader, teacher, settings.objectives)
        if form == "btr" and settings.calibrate and reader.residual_scale is None:
            raise ValueError("the reader has no residual scale yet: run btr calibrate on it")
        if form != "btr" and settings.objectives.recovery > 0:
            settings = replace(settings, objectives=replace(settings.objectives, recovery=0.0))
        super().__init__(settings, out, progress)
        self.reader = reader
        scale = reader.residual_scale if form == "btr" and settings.calibrate else None
        reader.model.float().requires_grad_(True)
        if form == "btr" and not settings.calibrate:
            # Plain signs go past the norm's scale; reading applies it, so it must be 1 there.
            norm, _ = after_the_cut(reader.model, reader.settings)
            norm.weight.requires_grad_(False).fill_(1)
        student = TrainableReader(reader.model, reader.settings, form, scale, settings.compression, settings.surrogate)
        self.teacher = None
        if teacher is not None:
            teacher.model.requires_grad_(False)
            self.teacher = TrainableReader(teacher.model, reader.settings, "atlas").to(self.accelerator.device)
        self._prepare(student, form)

    def _batches(self, examples: Sequence[Example]) -> Batches:
        return Batches(examples, self.reader.tokenizer, self.settings)

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
        return evaluate(self.student, dev, self.reader.tokenizer, self.settings)

    def _save(self, directory: Path) -> None:
        self.trained().save(directory)

    def trained(self) -> Reader:
        """The reader as it is now, with the scale of its form."""
        scale = self.student.residual_scale
        if self.form == "btr" and scale is None:
            scale = torch.ones(self.reader.config.d_model)
        scale = self.reader.residual_scale if scale is None else scale.detach().cpu()
        return replace(self.reader, residual_scale=scale)


def evaluate(
    student: TrainableReader, examples: Sequence[Example], tokenizer, settings: TrainingSettings
) -> dict[str, float]:
    """Exact match and F1 in percent of greedy answers, over accepted answers."""
    student.eval()
    device = next(student.parameters()).device
    batches = Batches(examples, tokenizer, settings)
    exact, f1 = [], []
    for start in range(0, len(examples), settings.batch_size):
        chunk = examples[start : start + settings.batch_size]
        batch = batches.batch(chunk).to(device)
        for ids, example in zip(
            student.generate(batch.query, batch.passages, settings.target_length), chunk, strict=True
        ):
            answer = tokenizer.decode(ids)
            exact.append(exact_match(answer, example.answers))
            f1.append(best_f1(answer, example.answers))
    return {"exact_match": 100 * sum(exact) / len(exact), "f1": 100 * sum(f1) / len(f1)}
