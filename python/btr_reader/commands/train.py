"""`btr train`: teacher, DeFormer and BTR readers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from ..training.settings import Objectives, TrainingSettings


@dataclass
class TrainingFiles:
    """What is trained on what."""

    reader: Path
    """Reader directory to start from."""
    train: Path
    """Questions in Atlas' format of the task, with answers and the texts of their passages."""
    dev: Path
    """Questions in the same format that say when to stop."""
    out: Path
    """Directory for the best reader, metrics and checkpoints; the same command continues a run that was stopped."""
    task: Literal["nq", "triviaqa", "webq", "fever", "mmlu"] = "nq"
    """Format of the questions, and whose metrics the scores on the dev set are."""
    permutations: Literal["none", "cyclic", "all"] = "none"
    """Orders in which the options of multiple-choice questions are asked, to train and to test."""


TEACHER = TrainingSettings(objectives=Objectives(recovery=0.0, distillation=0.0, divergence=0.0))
DEFORMER = TrainingSettings(objectives=Objectives(recovery=0.0))
BTR = TrainingSettings()


def teacher(files: OmitArgPrefixes[TrainingFiles], settings: OmitArgPrefixes[TrainingSettings] = TEACHER) -> None:
    """Trains the undecomposed reader, Atlas' own form.

    Args:
        files: What is trained on what.
        settings: Settings of the run.
    """
    _train("atlas", files, settings, None)


def deformer(
    files: OmitArgPrefixes[TrainingFiles],
    teacher: Path | None = None,
    settings: OmitArgPrefixes[TrainingSettings] = DEFORMER,
) -> None:
    """Trains a reader whose lower layers read passages without the question, on floats.

    Args:
        files: What is trained on what.
        teacher: Reader directory of a trained teacher; without one only the answers teach.
        settings: Settings of the run.
    """
    _train("deformer", files, settings, teacher)


def btr(
    files: OmitArgPrefixes[TrainingFiles],
    teacher: Path | None = None,
    settings: OmitArgPrefixes[TrainingSettings] = BTR,
) -> None:
    """Trains a reader whose lower layers read passages without the question, on bits.

    Args:
        files: What is trained on what.
        teacher: Reader directory of a trained teacher; without one only answers and recovery teach.
        settings: Settings of the run.
    """
    _train("btr", files, settings, teacher)


def _train(form: str, files: TrainingFiles, settings: TrainingSettings, teacher: Path | None) -> None:
    from ..encoding import CALIBRATION_PASSAGES, calibrate_residual_scale
    from ..reader import load_reader
    from ..training.examples import read_examples
    from ..training.loop import Trainer
    from ..training.run import outcome

    reader = load_reader(files.reader)
    examples, dev = (
        read_examples(path, files.task, reader.tokenizer, files.permutations) for path in (files.train, files.dev)
    )
    if teacher is None:
        objectives = replace(settings.objectives, distillation=0.0, divergence=0.0)
        if objectives != settings.objectives:
            print("without --teacher there is neither distillation nor divergence")
        settings = replace(settings, objectives=objectives)
    if form == "btr" and settings.calibrate and not settings.centroids and reader.residual_scale is None:
        if reader.code is not None:
            print(f"{files.reader}: was trained with centroids; without --centroids the student is one of plain bits")
            reader = replace(reader, code=None)
        passages = [passage for example in examples for passage in example.passages][:CALIBRATION_PASSAGES]
        reader = replace(reader, residual_scale=calibrate_residual_scale(reader, passages, settings.passage_length))
    taught_by = None if teacher is None else load_reader(teacher)
    trainer = Trainer(reader, form, settings, files.out, taught_by, task=files.task)
    best = trainer.train(examples, dev)
    print(outcome(files.out, best, len(dev)))
