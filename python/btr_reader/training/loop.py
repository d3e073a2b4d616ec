"""The training loop: any form of a reader, on any devices that `accelerate` knows, to be continued after a kill."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from ..engine import Form
from ..files import locked, publish_directory
from ..metrics import best_f1, exact_match
from ..reader import Reader
from ..states import after_the_cut
from .checkpoints import Checkpoints
from .examples import Batches, Example
from .forward import Batch, Output, TrainableReader
from .losses import distillation_loss, output_divergence, recovery_loss, task_loss
from .settings import TrainingSettings

BEST, METRICS = "best", "metrics.jsonl"
#: Optimizer steps between lines of metrics.
REPORT_EVERY = 10


class Trainer:
    """Trains a reader in one form and keeps the best by the dev set's exact match.

    Writes into `out`: `best/`, a reader directory; `metrics.jsonl`; and while it runs `checkpoints/`. The same call
    after a kill goes on from the newest checkpoint and comes to the same result, to the bit on one CPU thread.

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
        if settings.objectives.need_teacher and teacher is None:
            raise ValueError("teacher: distillation and divergence need one; give a teacher, or set both weights to 0")
        if teacher is not None and teacher.tokenizer.fingerprint() != reader.tokenizer.fingerprint():
            raise ValueError("teacher: its tokenizer is not the reader's, so that their tokens are not comparable")
        for name, what in (("d_model", "channels"), ("num_layers", "encoder layers")):
            wanted = getattr(reader.config, name)
            if teacher is not None and getattr(teacher.config, name) != wanted:
                raise ValueError(f"teacher: expected {wanted} {what}, got {getattr(teacher.config, name)}")
        if form == "btr" and settings.calibrate and reader.residual_scale is None:
            raise ValueError("the reader has no residual scale yet: run btr calibrate on it")
        if form != "btr" and settings.objectives.recovery > 0:
            settings = replace(settings, objectives=replace(settings.objectives, recovery=0.0))
        self.reader, self.form, self.settings, self.out = reader, form, settings, Path(out)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if settings.precision == "bfloat16" else "no",
            gradient_accumulation_steps=settings.accumulate,
        )
        set_seed(settings.seed)
        scale = reader.residual_scale if form == "btr" and settings.calibrate else None
        reader.model.float().requires_grad_(True)
        if form == "btr" and not settings.calibrate:
            # Plain signs go past the norm's scale; reading applies it, so it must be 1 there.
            norm, _ = after_the_cut(reader.model, reader.settings)
            norm.weight.requires_grad_(False).fill_(1)
        self.student = TrainableReader(
            reader.model, reader.settings, form, scale, settings.compression, settings.surrogate
        )
        self.teacher = None
        if teacher is not None:
            teacher.model.requires_grad_(False)
            self.teacher = TrainableReader(teacher.model, reader.settings, "atlas").to(self.accelerator.device)
        optimizer = torch.optim.AdamW(self._groups(), lr=settings.learning_rate)
        # accelerate steps the schedule once for every process.
        processes = self.accelerator.num_processes
        schedule = get_scheduler(
            settings.schedule,
            optimizer,
            num_warmup_steps=round(settings.warmup * settings.steps) * processes,
            num_training_steps=settings.steps * processes,
        )
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(self.student, optimizer, schedule)
        run = {"form": form, "settings": settings.to_dict(), "processes": processes}
        self.checkpoints = Checkpoints(self.out, run)
        self._progress_shown = progress and self.accelerator.is_main_process

    def _groups(self) -> list[dict[str, Any]]:
        """Weight decay is for matrices: not for the scales of norms and of restored bits."""
        named = list(self.student.named_parameters())
        return [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": self.settings.weight_decay},
            {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def train(self, examples: Sequence[Example], dev: Sequence[Example]) -> dict[str, Any]:
        """Trains to the end and returns the best step and its scores on the dev set; of a run that is done, its own."""
        main = self.accelerator.is_main_process
        with locked(self.out, "run") if main else nullcontext():
            done = self.checkpoints.finished()
            return self._train(examples, dev) if done is None else done

    def _train(self, examples: Sequence[Example], dev: Sequence[Example]) -> dict[str, Any]:
        settings, accelerator = self.settings, self.accelerator
        batches = Batches(examples, self.reader.tokenizer, settings)
        state = self.checkpoints.load(accelerator) or {"step": 0, "best": None, "without_better": 0}
        self._drop_later_metrics(state["step"])
        bar = tqdm(
            desc=f"train {self.form}",
            total=settings.steps,
            initial=state["step"],
            unit=" steps",
            disable=not self._progress_shown,
        )
        window = _Window()
        with bar:
            while state["step"] < settings.steps and state["without_better"] < settings.patience:
                self._step(batches, state["step"], window)
                state["step"] += 1
                bar.update()
                if state["step"] % REPORT_EVERY == 0:
                    line = window.close(self.schedule.get_last_lr()[0])
                    bar.set_postfix_str(f"loss {line['loss']:.3f}, {line['tokens_per_second']:.0f} tokens/s")
                    self._write({"step": state["step"], **line})
                if state["step"] % settings.evaluate_every == 0 or state["step"] == settings.steps:
                    self._evaluate(dev, state)
                if state["step"] % settings.checkpoint_every == 0:
                    self.checkpoints.save(accelerator, state["step"], state)
        if accelerator.is_main_process:
            self.checkpoints.finish(state)
        return state["best"]

    def _step(self, batches: Batches, step: int, window: _Window) -> None:
        settings, accelerator = self.settings, self.accelerator
        self.model.train()
        for part in range(settings.accumulate):
            place = (step * settings.accumulate + part) * accelerator.num_processes + accelerator.process_index
            batch = batches[place].to(accelerator.device)
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    output = self.model(batch, step / settings.steps)
                    losses = self._losses(output, batch)
                loss = sum(losses.values())
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(f"step {step}: the loss is {loss.item()}; lower the learning rate")
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.model.parameters(), settings.clip)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            window.add({**losses, "loss": loss}, batch)

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

    def _evaluate(self, dev: Sequence[Example], state: dict[str, Any]) -> None:
        scores = evaluate(self.student, dev, self.reader.tokenizer, self.settings)
        better = state["best"] is None or scores["exact_match"] > state["best"]["exact_match"]
        state["without_better"] = 0 if better else state["without_better"] + 1
        if better:
            state["best"] = {"step": state["step"], **scores}
            if self.accelerator.is_main_process:
                # A kill must not leave half of it in place of the one before.
                temporary = self.out / f".{BEST}.tmp"
                shutil.rmtree(temporary, ignore_errors=True)
                self.trained().save(temporary)
                publish_directory(temporary, self.out / BEST)
        self._write({"step": state["step"], **{f"dev_{name}": score for name, score in scores.items()}})
        if self._progress_shown:
            tqdm.write(f"step {state['step']}: dev exact match {scores['exact_match']:.1f}, F1 {scores['f1']:.1f}")

    def trained(self) -> Reader:
        """The reader as it is now, with the scale of its form."""
        scale = self.student.residual_scale
        if self.form == "btr" and scale is None:
            scale = torch.ones(self.reader.config.d_model)
        scale = self.reader.residual_scale if scale is None else scale.detach().cpu()
        return replace(self.reader, residual_scale=scale)

    def _write(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.out / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _drop_later_metrics(self, step: int) -> None:
        """After a kill the lines of steps that are done again are dropped."""
        path = self.out / METRICS
        if not self.accelerator.is_main_process or not path.exists():
            return
        whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step), encoding="utf-8")


class _Window:
    """Means of losses and rates of work over some steps."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._passes = self._tokens = self._questions = 0
        self._start = perf_counter()

    def add(self, losses: dict[str, Tensor], batch: Batch) -> None:
        for name, value in losses.items():
            self._sums[name] += value.detach()  # as a tensor: a GPU is not waited for
        self._passes += 1
        self._tokens += int((batch.passages.sizes > 0).sum())
        self._questions += len(batch.targets)

    def close(self, learning_rate: float) -> dict[str, float]:
        """One line of metrics; the next window begins."""
        seconds = perf_counter() - self._start
        line = {name: float(total) / self._passes for name, total in self._sums.items()}
        line |= {"learning_rate": learning_rate, "tokens_per_second": self._tokens / seconds}
        line |= {"examples_per_second": self._questions / seconds}
        self._restart()
        return line


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
