"""Training in several processes, as `accelerate launch` starts them for several GPUs; here on a CPU, through gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from btr_reader.extractive.reader import load_extractive_reader
from btr_reader.jsonl import read_json_object, write_jsonl
from btr_reader.reader import load_reader
from btr_reader.training.examples import read_examples
from btr_reader.training.facts import fact_questions
from btr_reader.training.loop import Trainer
from btr_reader.training.run import BEST, METRICS
from btr_reader.training.settings import Objectives

from .helpers import ANSWERS_ONLY

SIZES = ("--steps", 4, "--batch-size", 2, "--passages", 2, "--passage-length", 20, "--learning-rate", 1e-3)
SIZES += ("--evaluate-every", 4)


@pytest.fixture
def questions(tmp_path) -> Path:
    write_jsonl(tmp_path / "facts.jsonl", fact_questions("nq", 7, 2))
    return tmp_path / "facts.jsonl"


def in_two_processes(*command: object) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = [*launch, "-m", "btr_reader", "train", *map(str, command)]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]


def test_two_processes_are_two_passes(tiny_reader, questions, facts_tokenizer, tmp_path):
    """Gradients of two processes are averaged like those of two passes."""
    tiny_reader().save(tmp_path / "start")
    settings = replace(ANSWERS_ONLY, steps=4, evaluate_every=4, checkpoint_every=100, accumulate=2)
    alone = Trainer(tiny_reader(), "atlas", settings, tmp_path / "alone", progress=False)
    examples = read_examples(questions, "nq", facts_tokenizer)
    alone.train(examples, examples)
    files = ("--train", questions, "--dev", questions, "--out", tmp_path / "both")
    in_two_processes("teacher", "--reader", tmp_path / "start", *files, *SIZES, "--target-length", 5)
    assert read_json_object(tmp_path / "both" / "finished.json", "")["run"]["processes"] == 2
    start = tiny_reader().model.state_dict()
    for name, tensor in load_reader(tmp_path / "both" / BEST).model.state_dict().items():
        mine = alone.reader.model.state_dict()[name]
        # Sums in another order: next to how far training went, nothing.
        assert (tensor - mine).abs().max() <= 0.02 * (mine - start[name]).abs().max() + 1e-7, name


def test_a_student_trains_in_two_processes(tiny_reader, questions, tmp_path):
    """With all objectives, on bits of what id and place do not foretell, merged before they are stored."""
    for name, seed in (("start", 0), ("teacher", 1)):
        tiny_reader(seed=seed).save(tmp_path / name)
    files = ("--train", questions, "--dev", questions, "--out", tmp_path / "out", "--teacher", tmp_path / "teacher")
    options = ("--target-length", 5, "--centroids", "--masked-bits", 9, "--offline", 0.7)
    in_two_processes("btr", "--reader", tmp_path / "start", *files, *SIZES, *options)
    assert read_json_object(tmp_path / "out" / "finished.json", "")["run"]["processes"] == 2
    start, trained = load_reader(tmp_path / "start"), load_reader(tmp_path / "out" / BEST)
    assert trained.code.stored_bits == 9
    assert not torch.equal(start.model.shared.weight, trained.model.shared.weight)


def test_several_devices_need_an_objective_of_the_outputs(tiny_reader, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    settings = replace(ANSWERS_ONLY, objectives=Objectives(answers=0.0, divergence=0.0))
    with pytest.raises(ValueError, match="answers or divergence must be above 0 on several devices"):
        Trainer(tiny_reader(), "deformer", settings, tmp_path, tiny_reader(seed=1), progress=False)


def test_the_extractive_reader_trains_in_two_processes(encoder_directory, passages, tmp_path):
    asked = [
        {
            "question": f"what is {passage.title}",
            "answers": [" ".join(passage.text.split()[2:4])],
            "passages": [{"id": passage.id, "title": passage.title, "text": passage.text}],
        }
        for passage in passages[:8]
    ]
    write_jsonl(tmp_path / "asked.jsonl", asked)
    files = ("--model", encoder_directory, "--train", tmp_path / "asked.jsonl", "--dev", tmp_path / "asked.jsonl")
    options = ("--cut-layer", 1, "--query-length", 12, "--centroids", "--out", tmp_path / "out")
    in_two_processes("extractive", "--form", "btr", *files, *options, *SIZES)
    assert read_json_object(tmp_path / "out" / "finished.json", "")["run"]["processes"] == 2
    code = load_extractive_reader(tmp_path / "out" / BEST).code
    assert code.centroids is not None and bool(code.scale.isfinite().all())
    lines = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    assert "dev_f1" in lines[-1]
