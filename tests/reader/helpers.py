"""Small reader shapes and runs of the tests, and checkpoints of Atlas' original layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from btr_reader.cli import main
from btr_reader.jsonl import read_jsonl
from btr_reader.reader import Reader
from btr_reader.settings import Shape
from btr_reader.training.run import TrainingRun
from btr_reader.training.settings import Objectives, TrainingSettings

# Neither the channels nor the heads' total width is a multiple of 8: pad bits take part.
SMALL = Shape(d_model=44, d_ff=72, heads=3, head_size=12, layers=4, cut_layer=2, vocabulary=1100)
# That of training tests, whose tokenizer knows the words of the generated task only.
TINY = Shape(d_model=24, d_ff=48, heads=2, head_size=12, layers=3, cut_layer=2, vocabulary=400)


# A run of a few steps of the reader of that shape on the generated task, with no objective but the answers.
ANSWERS_ONLY = TrainingSettings(
    steps=6,
    batch_size=2,
    passages=2,
    passage_length=20,
    target_length=5,
    learning_rate=1e-3,
    evaluate_every=3,
    checkpoint_every=2,
    objectives=Objectives(recovery=0.0, distillation=0.0, divergence=0.0),
)

# Of a student on bits of what vocabulary id and place do not foretell.
CENTROIDS = replace(
    ANSWERS_ONLY,
    steps=4,
    passages=3,
    learning_rate=1e-2,
    evaluate_every=2,
    checkpoint_every=3,
    centroids=True,
    objectives=Objectives(distillation=0.0, divergence=0.0),
)


def killed_at(number: int, trainer: TrainingRun, examples: Sequence[Any], dev: Sequence[Any]) -> None:
    """Trains until an interruption in front of the step of that number, counted from 0."""
    step = trainer._step

    def stop(batches: Any, current: int, window: Any) -> None:
        if current == number:
            raise KeyboardInterrupt
        step(batches, current, window)

    trainer._step = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train(examples, dev)


def run(*arguments: object) -> int:
    """The exit status of the command `btr` with these arguments."""
    return main([str(argument) for argument in arguments])


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [row for _, row in read_jsonl(path)]


def atlas_checkpoint(
    reader: Reader, directory: Path, prefix: str = "reader.", opt: Any = None, **changes: torch.Tensor | None
) -> Path:
    """A checkpoint of the original layout, with the retriever and the optimizers beside the reader.

    changes: tensors to add or replace, None to leave one out.
    """
    model = {prefix + name: tensor for name, tensor in reader.model.state_dict().items()}
    model["retriever.contriever.embeddings.word_embeddings.weight"] = torch.zeros(3, 4)
    model.update(changes)
    model = {name: tensor for name, tensor in model.items() if tensor is not None}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    directory.mkdir(exist_ok=True)
    content = {"step": 12, "model": model, "optimizer": optimizer, "retr_optimizer": None}
    content |= {"scheduler": {"last_epoch": 3}, "retr_scheduler": None}
    content["opt"] = opt or argparse.Namespace(reader_model_type="google/t5-base-lm-adapt", n_context=40)
    torch.save(content, directory / "model.pth.tar")
    return directory
