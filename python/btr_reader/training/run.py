"""A training run, whatever is trained: on any devices that `accelerate` knows, to be continued after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, set_seed
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_scheduler

from ..digests import add_tensors
from ..files import locked, publish_directory
from ..settings import ReaderSettings
from ..sign_code import SignCode
from .checkpoints import Checkpoints
from .settings import Objectives, RunSettings

BEST, METRICS = "best", "metrics.jsonl"
#: Optimizer steps between lines of metrics.
REPORT_EVERY = 10


class Comparable(Protocol):
    """What a reader and its teacher must have in common."""

    tokenizer: Any
    settings: ReaderSettings
    channels: int
    layers: int


def check_teacher(reader: Comparable, teacher: Comparable | None, objectives: Objectives) -> None:
    """Raises `ValueError` where an objective needs a teacher that is not given, or one that does not fit the reader."""
    if teacher is None:
        if objectives.need_teacher:
            raise ValueError("teacher: distillation and divergence need one; give a teacher, or set both weights to 0")
        return
    if teacher.tokenizer.fingerprint() != reader.tokenizer.fingerprint():
        raise ValueError("teacher: its tokenizer is not the reader's, so that their tokens are not comparable")
    for name, what in (("channels", "channels"), ("layers", "encoder layers")):
        if getattr(teacher, name) != getattr(reader, name):
            raise ValueError(f"teacher: expected {getattr(reader, name)} {what}, got {getattr(teacher, name)}")


def shown(scores: dict[str, float]) -> str:
    """Scores for people, by which step they come from or not: `exact match 93.1, f1 93.4`."""
    return ", ".join(f"{name.replace('_', ' ')} {score:.1f}" for name, score in scores.items() if name != "step")


def outcome(out: Path, best: dict[str, float], questions: int) -> str:
    """What a run says at its end."""
    return f"{out / BEST}: step {best['step']}, {shown(best)} on {questions} questions"


class CountedBatch(Protocol):
    """A batch on some device, and how much work it is."""

    @property
    def questions(self) -> int: ...

    @property
    def tokens(self) -> int:
        """Passage tokens, padding not counted."""
        ...

    def to(self, device: torch.device | str) -> CountedBatch: ...


class TrainingRun:
    """The loop: steps, evaluations, checkpoints, metrics. What is trained, `reader`, is a subclass' business.

    Writes into `out`: `best/`, what `_save` writes of the best by `best_by` of the dev set's scores; `metrics.jsonl`;
    and while it runs `checkpoints/`. The same call after a kill goes on from the newest checkpoint and comes to the
    same result, to the bit on one CPU thread.
    """

    best_by = "exact_match"
    reader: Comparable

    def __init__(self, settings: RunSettings, out: str | Path, progress: bool = True):
        self.settings, self.out = settings, Path(out)
        # accelerate's own mixed precision is one for the whole process: runs of both could not follow one another.
        self.accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=settings.accumulate)
        if self.accelerator.num_processes > 1 and not settings.objectives.of_outputs:
            # They would wait for gradients of what follows the encoder, which then has none.
            raise ValueError("objectives: answers or divergence must be above 0 on several devices")
        set_seed(settings.seed)
        self._progress_shown = progress and self.accelerator.is_main_process

    def _begin(self, examples: Sequence[Any]) -> None:
        """Measures on the questions what a new run starts from; one that goes on has it in its checkpoint."""

    def _batches(self, examples: Sequence[Any]) -> Any:
        """Batches by number: the same number is always the same batch."""
        raise NotImplementedError

    def _losses(self, output: Any, batch: Any) -> dict[str, Tensor]:
        """The weighted terms of the loss, of what the student gave for a batch."""
        raise NotImplementedError

    def _scores(self, dev: Sequence[Any]) -> dict[str, float]:
        """Scores on the dev set in percent, by `best_by` among others."""
        raise NotImplementedError

    def _save(self, directory: Path) -> None:
        """Writes what is trained as it is now."""
        raise NotImplementedError

    def _prepare(self, student: nn.Module, form: str, teacher: nn.Module | None, **more: Any) -> None:
        """What is trained: a module of a batch and of the share of the training that is done. The run belongs to the
        `model` of it and of the teacher as they are now, and to `more`."""
        settings, processes = self.settings, self.accelerator.num_processes
        self.form, self.student = form, student
        optimizer = torch.optim.AdamW(self._groups(), lr=settings.learning_rate)
        # accelerate steps the schedule once for every process.
        schedule = get_scheduler(
            settings.schedule,
            optimizer,
            num_warmup_steps=round(settings.warmup * settings.steps) * processes,
            num_training_steps=settings.steps * processes,
        )
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(student, optimizer, schedule)
        run = {"form": form, "processes": processes, "reader": _digest(student)}
        run |= {"cut": self.reader.settings.to_dict(), "teacher": None if teacher is None else _digest(teacher), **more}
        self.checkpoints = Checkpoints(self.out, run, settings)

    def _groups(self) -> list[dict[str, Any]]:
        """Weight decay is for matrices: not for the scales of norms and of restored bits."""
        named = list(self.student.named_parameters())
        return [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": self.settings.weight_decay},
            {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def train(self, examples: Sequence[Any], dev: Sequence[Any]) -> dict[str, Any]:
        """Trains to the end and returns the best step and its scores on the dev set; of a run that is done, its own."""
        main = self.accelerator.is_main_process
        self._identify(examples, dev)
        with locked(self.out, "run") if main else nullcontext():
            done = self.checkpoints.finished()
            return self._train(examples, dev) if done is None else done

    def _identify(self, examples: Sequence[Any], dev: Sequence[Any]) -> None:
        """Of other questions it would be another run."""
        self.checkpoints.belong_to(train=_digest_of_examples(examples), dev=_digest_of_examples(dev))

    def _train(self, examples: Sequence[Any], dev: Sequence[Any]) -> dict[str, Any]:
        settings, accelerator = self.settings, self.accelerator
        batches = self._batches(examples)
        state = self.checkpoints.load(accelerator)
        if state is None:
            self._begin(examples)
            state = {"step": 0, "best": None, "without_better": 0}
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
                    bar.set_postfix_str(
                        f"loss {line['loss']:.3f}, {line['tokens_per_second']:.0f} tokens/s, "
                        f"{line['examples_per_second']:.0f} examples/s"
                    )
                    self._write({"step": state["step"], **line})
                if state["step"] % settings.evaluate_every == 0 or state["step"] == settings.steps:
                    self._evaluate(dev, state)
                if state["step"] % settings.checkpoint_every == 0:
                    self.checkpoints.save(accelerator, state["step"], state)
        if accelerator.is_main_process:
            self.checkpoints.finish(state)
        return state["best"]

    def _use_code(self, measured: SignCode) -> None:
        """Starts from this code, which each process has measured: from that of the first, to the bit."""
        state = {name: tensor.to(self.accelerator.device) for name, tensor in measured.state_dict().items()}
        self.student.code.load_state_dict(broadcast(state))

    def _rounding(self) -> torch.autocast:
        """The precision of forward passes."""
        return torch.autocast(
            self.accelerator.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"
        )

    def _step(self, batches: Any, step: int, window: _Window) -> None:
        settings, accelerator = self.settings, self.accelerator
        self.model.train()
        for part in range(settings.accumulate):
            place = (step * settings.accumulate + part) * accelerator.num_processes + accelerator.process_index
            batch = batches[place].to(accelerator.device)
            with accelerator.accumulate(self.model):
                with self._rounding():
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

    def _evaluate(self, dev: Sequence[Any], state: dict[str, Any]) -> None:
        # Of several devices each may round otherwise, and all have to stop at the same step.
        scores = broadcast_object_list([self._scores(dev)])[0]
        better = state["best"] is None or scores[self.best_by] > state["best"][self.best_by]
        state["without_better"] = 0 if better else state["without_better"] + 1
        if better:
            state["best"] = {"step": state["step"], **scores}
            if self.accelerator.is_main_process:
                # A kill must not leave half of it in place of the one before.
                temporary = self.out / f".{BEST}.tmp"
                shutil.rmtree(temporary, ignore_errors=True)
                self._save(temporary)
                publish_directory(temporary, self.out / BEST)
        self._write({"step": state["step"], **{f"dev_{name}": score for name, score in scores.items()}})
        if self._progress_shown:
            tqdm.write(f"step {state['step']}: dev {shown(scores)}")

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


def _digest(module: nn.Module) -> str:
    """Of the weights that a run starts from: not of what is calibrated at its beginning, which threads may round."""
    return digest_of(module.model.named_parameters())


def digest_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named tensors."""
    digest = hashlib.sha256()
    add_tensors(digest, named)
    return digest.hexdigest()


def _digest_of_examples(examples: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()


class _Window:
    """Means of losses and rates of work over some steps."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._passes = self._tokens = self._questions = 0
        self._start = perf_counter()

    def add(self, losses: dict[str, Tensor], batch: CountedBatch) -> None:
        for name, value in losses.items():
            self._sums[name] += value.detach()  # as a tensor: a GPU is not waited for
        self._passes += 1
        self._tokens += batch.tokens
        self._questions += batch.questions

    def close(self, learning_rate: float) -> dict[str, float]:
        """One line of metrics; the next window begins."""
        seconds = perf_counter() - self._start
        line = {name: float(total) / self._passes for name, total in self._sums.items()}
        line |= {"learning_rate": learning_rate, "tokens_per_second": self._tokens / seconds}
        line |= {"examples_per_second": self._questions / seconds}
        self._restart()
        return line
