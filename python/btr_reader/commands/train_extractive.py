"""`btr train extractive`: the encoder-only reader, which marks the answer in its passages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from ..settings import CutPoint
from ..training.extractive_settings import ExtractiveSettings
from ..training.settings import Objectives


@dataclass
class ExtractiveFiles:
    """What is trained on what."""

    model: Path
    """Directory of a BERT with its tokenizer, or of an extractive reader, such as the teacher, to start from; a BTR
    student of the same bits keeps its scales and tables."""
    train: Path
    """Questions with answers and the texts of their passages, in Atlas' format of natural questions."""
    dev: Path
    """Questions in the same format that say when to stop."""
    out: Path
    """Directory for the best reader, metrics and checkpoints; the same command continues a run that was stopped."""
    teacher: Path | None = None
    """Directory of a trained teacher; without one there is neither distillation nor divergence."""
    cut_layer: int | None = None
    """Layers that read a passage offline; if it is not given those of the reader, three quarters of a plain BERT's."""
    cut_point: CutPoint = "layer_output"
    """The state that is kept of the last of them, where --cut-layer is given."""
    query_length: int = 32
    """Places for the question in front of a passage, of a plain BERT; a question is cut to as many tokens."""


SETTINGS = ExtractiveSettings(objectives=Objectives(answers=0.4, recovery=0.2, distillation=2.0, divergence=0.6))


def extractive(
    form: Literal["teacher", "deformer", "btr"],
    files: OmitArgPrefixes[ExtractiveFiles],
    settings: OmitArgPrefixes[ExtractiveSettings] = SETTINGS,
) -> None:
    """Trains an encoder-only reader, which marks the answer in its passages.

    Args:
        form: The undecomposed reader, or one whose lower layers read passages without the question: on floats, on bits.
        files: What is trained on what.
        settings: Settings of the run.
    """
    from ..extractive.examples import read_span_examples
    from ..extractive.reader import load_extractive_reader
    from ..settings import ReaderSettings
    from ..training.extractive import ExtractiveTrainer, SpanTeacher
    from ..training.run import outcome

    cut = None if files.cut_layer is None else ReaderSettings(files.cut_layer, files.cut_point)
    reader = load_extractive_reader(files.model, cut, files.query_length)
    train, dev = read_span_examples(files.train), read_span_examples(files.dev)
    teacher = None
    if files.teacher is not None:
        teacher = SpanTeacher(load_extractive_reader(files.teacher, reader.settings))
    if teacher is None:
        settings = replace(settings, objectives=replace(settings.objectives, distillation=0.0, divergence=0.0))
    run_form = "atlas" if form == "teacher" else form
    best = ExtractiveTrainer(reader, run_form, settings, files.out, teacher).train(train, dev)
    print(outcome(files.out, best, len(dev)))
