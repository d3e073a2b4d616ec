"""What the recipe of docs/recipe.md takes at every size: measured at base on one core, counted from there.

    python benchmarks/recipe_estimates.py [--json benchmarks/results/quality/recipe.json]

Prints the recipe's table. What the JSON file holds is not measured again. Measured are, in seconds of CPU time (other
work on the machine does not lengthen it): encoding real text, a training step of a teacher and of a BTR student with
its teacher; and the peak memory of both, each in a process of its own. Other sizes are those times their multiply-adds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch

from btr_kernels.env import cpu_model
from btr_reader.corpus import topic_passages
from btr_reader.encoding import PassageEncoder, calibrate_residual_scale, encode_corpus
from btr_reader.files import write_durably
from btr_reader.jsonl import read_json_object, write_jsonl
from btr_reader.passages import Passage, parse_passage
from btr_reader.reader import Reader, random_reader
from btr_reader.settings import SHAPES, ReaderSettings, Shape, t5_config
from btr_reader.store import store_report
from btr_reader.token_statistics import calibrate
from btr_reader.training.examples import Example
from btr_reader.training.loop import Trainer
from btr_reader.training.settings import Objectives, TrainingSettings

RESULTS = Path(__file__).parent / "results" / "quality" / "recipe.json"
MEASURED, SIZES = "base", ("small", "base", "large", "xl", "xxl")
#: Tokens of Wikipedia: a DeFormer store of base takes 12,804 GB in the paper's table, 3,072 bytes a token.
WIKIPEDIA_TOKENS = 12_804e9 / 3_072
#: Share of the bits that are stored: 216 of base's 768.
MASKED = 9 / 32
LENGTH, QUERY, PASSAGES, STEPS = 200, 20, 5, 2
#: float32 weights, gradients, and both moments of Adam.
TRAINING_BYTES = 16


def prepared() -> tuple[Reader, list[Passage]]:
    """A reader of random weights and real text for it."""
    torch.set_num_threads(1)
    passages = [parse_passage(record, "topics") for record in topic_passages(LENGTH)[:200]]
    shape = SHAPES[MEASURED]
    texts = [passage.text for passage in passages]
    return random_reader(t5_config(shape), ReaderSettings(shape.cut_layer), texts=texts), passages


def encoding() -> dict[str, float]:
    """CPU seconds per token, and bytes per token of a store of masked bits besides the bits."""
    reader, passages = prepared()
    passages = passages[:48]
    bits = round(MASKED * reader.channels)
    _, statistics = calibrate(reader, passages, LENGTH)
    with TemporaryDirectory() as work:
        corpus, store = Path(work) / "passages.jsonl", Path(work) / "store"
        write_jsonl(corpus, ({"id": p.id, "title": p.title, "text": p.text} for p in passages))
        encoder = PassageEncoder(reader, passage_length=LENGTH, masked_bits=bits, original_ids=False)
        start = process_time()
        encode_corpus(encoder, corpus, store, tables=statistics.tables(bits), progress=False)
        seconds = process_time() - start
        report = store_report(store)
    # The manifest and headers are of a corpus of any size.
    other = report["bytes_per_token"]["total"] - report["bytes_per_token"]["overhead"] - bits / 8
    return {"seconds_per_token": seconds / report["original_tokens"], "other_bytes_per_token": other}


def training(form: str) -> dict[str, float]:
    """CPU seconds per passage token of a step, and what it takes in memory beyond weights, gradients and Adam."""
    reader, passages = prepared()
    teacher = None
    objectives = Objectives(recovery=0.0, distillation=0.0, divergence=0.0)
    if form == "btr":
        teacher, objectives = replace(reader), Objectives()
        reader = random_reader(t5_config(MEASURED), reader.settings, tokenizer=reader.tokenizer, seed=1)
        reader = replace(reader, residual_scale=calibrate_residual_scale(reader, passages[:4], LENGTH))
    settings = TrainingSettings(
        steps=STEPS + 1, batch_size=1, passages=PASSAGES, passage_length=LENGTH, evaluate_every=100,
        checkpoint_every=100, objectives=objectives,
    )  # fmt: skip
    query = " ".join(passages[0].text.split()[:QUERY])
    examples = [Example(query, ["an answer"], passages[i : i + PASSAGES]) for i in range(STEPS + 1)]
    with TemporaryDirectory() as work:
        trainer = Trainer(reader, form, settings, Path(work), teacher, progress=False)
        batches, window = trainer._batches(examples), _Tokens()
        trainer._step(batches, 0, _Tokens())  # Adam makes its moments
        start = process_time()
        for step in range(1, STEPS + 1):
            trainer._step(batches, step, window)
        seconds = process_time() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds_per_token": seconds / window.tokens, "peak_bytes": peak}


class _Tokens:
    """Counts the tokens of a run's steps."""

    tokens = 0

    def add(self, losses: dict, batch: Any) -> None:
        self.tokens += batch.tokens


PHASES = {"encoding": encoding, "teacher": lambda: training("atlas"), "student": lambda: training("btr")}


def multiply_adds(shape: Shape) -> dict[str, float]:
    """Multiply-adds per passage token of the encoder's lower layers, of the others, and of cross keys and values."""
    inner = shape.heads * shape.head_size
    layer = 4 * shape.d_model * inner + 3 * shape.d_model * shape.d_ff + 2 * LENGTH * inner
    return {
        "lower": shape.cut_layer * layer,
        "joint": (shape.layers - shape.cut_layer) * layer,
        "cross": 2 * shape.layers * shape.d_model * inner,
    }


def parameters(shape: Shape) -> int:
    """Of embedding, output head, encoder and decoder, norms and relative positions included."""
    d, inner = shape.d_model, shape.heads * shape.head_size
    encoder = 4 * d * inner + 3 * d * shape.d_ff + 2 * d
    decoder = encoder + 4 * d * inner + d
    return 2 * shape.vocabulary * d + shape.layers * (encoder + decoder) + 2 * d + 2 * 32 * shape.heads


def table(measured: dict[str, Any]) -> str:
    """The recipe's table, in Markdown."""
    base = multiply_adds(SHAPES[MEASURED])
    spare = {
        phase: measured[phase]["peak_bytes"] - copies * parameters(SHAPES[MEASURED])
        for phase, copies in (("teacher", TRAINING_BYTES), ("student", TRAINING_BYTES + 4))
    }
    lines = [
        "| | " + " | ".join(SIZES) + " |",
        "| --- |" + " --: |" * len(SIZES),
    ]
    rows: dict[str, list[str]] = {}
    for name in SIZES:
        shape, work, count = SHAPES[name], multiply_adds(SHAPES[name]), parameters(SHAPES[name])
        whole, lower = sum(work.values()) / sum(base.values()), work["lower"] / base["lower"]
        thousand = 1000 * 40 * LENGTH / 3600
        width = shape.d_model * shape.layers / (SHAPES[MEASURED].d_model * SHAPES[MEASURED].layers)
        bits = MASKED * shape.d_model
        bytes_per_token = bits / 8 + measured["encoding"]["other_bytes_per_token"]
        cells = {
            "parameters, millions": f"{count / 1e6:,.0f}",
            "reader directory, GB": f"{4 * count / 1e9:.1f}",
            "training a teacher: memory, GB": f"{(TRAINING_BYTES * count + width * spare['teacher']) / 1e9:.0f}",
            "... core hours for 1,000 questions": f"{whole * measured['teacher']['seconds_per_token'] * thousand:,.0f}",
            "training a student: memory, GB": f"{((TRAINING_BYTES + 4) * count + width * spare['student']) / 1e9:.0f}",
            "... core hours for them": f"{whole * measured['student']['seconds_per_token'] * thousand:,.0f}",
            "encoding Wikipedia: multiply-adds, 10^18": f"{WIKIPEDIA_TOKENS * work['lower'] / 1e18:.2f}",
            "... core days": f"{lower * measured['encoding']['seconds_per_token'] * WIKIPEDIA_TOKENS / 86400:,.0f}",
            f"store: bits of {MASKED:.1%} a token, GB": f"{bytes_per_token * WIKIPEDIA_TOKENS / 1e9:,.0f}",
            "... bytes per token": f"{bytes_per_token:.1f}",
            "... times less than float32 states": f"{4 * shape.d_model / bytes_per_token:.0f}",
            "all bits, GB": f"{(shape.d_model / 8 + 0.3) * WIKIPEDIA_TOKENS / 1e9:,.0f}",
            "float32 states (DeFormer), GB": f"{4 * shape.d_model * WIKIPEDIA_TOKENS / 1e9:,.0f}",
        }
        for row, cell in cells.items():
            rows.setdefault(row, []).append(cell)
    return "\n".join([*lines, *(f"| {row} | " + " | ".join(cells) + " |" for row, cells in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--phase", choices=PHASES, help="measure one and print it; used by this script itself")
    arguments = parser.parse_args()
    if arguments.phase is not None:
        print(json.dumps(PHASES[arguments.phase]()))
        return
    measured = read_json_object(arguments.json, "damaged results") if arguments.json.exists() else {}
    measured |= {"machine": f"{cpu_model()}, 1 thread, torch {torch.__version__}", "shape": MEASURED}
    for phase in PHASES:
        if phase not in measured:
            command = [sys.executable, __file__, "--phase", phase]
            measured[phase] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            write_durably(arguments.json, (json.dumps(measured, indent=2) + "\n").encode())
    print(table(measured))


if __name__ == "__main__":
    main()
