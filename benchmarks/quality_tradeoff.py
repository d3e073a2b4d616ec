"""Accuracy against storage and speed: a reader over stores and while reading at several shares of bits and tokens.

    python benchmarks/quality_tradeoff.py PASSAGES.jsonl --questions Q.jsonl --task nq --reader plain=DIR \
        --reader compressed=DIR2 --same-id-first --json FILE.json --plot FILE.png

Questions come with the ids of their passages, which are those of PASSAGES.jsonl. Every point is a store (tokens kept,
bits kept of each) and a preset of merging while reading: the task's metric over all questions, bytes per token of the
store, and questions per second over Atlas, which reads the same tokens with the same weights, question by question in
turns with it. Points that FILE.json holds already are not measured again: run again it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from btr_kernels.env import cpu_model
from btr_reader.answering import Answerer
from btr_reader.batches import pad_queries
from btr_reader.benchmark.contenders import Contender, Question
from btr_reader.digests import file_digest
from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.engine import ReaderEngine
from btr_reader.evaluation import evaluate_results
from btr_reader.files import write_durably
from btr_reader.jsonl import read_json_object
from btr_reader.model import WEIGHTS_FILE
from btr_reader.passages import read_passages
from btr_reader.reader import Reader, load_reader
from btr_reader.shares import PRESETS
from btr_reader.store import Store, store_report
from btr_reader.tasks import TASKS, read_questions
from btr_reader.token_statistics import TokenStatistics, calibrate, load_token_statistics

#: Share of tokens kept, and share of the bits of each.
STORES = ((1.0, 1.0), (1.0, 0.5), (1.0, 0.25), (0.7, 1.0), (0.5, 1.0), (0.5, 0.5), (0.35, 1.0), (0.35, 0.25))
TIMED_QUESTIONS = 20


@dataclass(frozen=True)
class Task:
    """What is read: questions with their passages, cut to `length` tokens."""

    name: str
    passages: Path
    questions: Path
    length: int
    new_tokens: int
    same_id_first: bool

    def store(self, reader: Reader, out: Path, keep: float, statistics: TokenStatistics | None, bits: int) -> Store:
        """A store of the passages; bits: of each token, 0 for all. Only Atlas, which has all, needs original ids."""
        encoder = PassageEncoder(
            reader, keep=keep, passage_length=self.length, same_id_first=self.same_id_first, masked_bits=bits,
            original_ids=keep == 1 and not bits,
        )  # fmt: skip
        tables = statistics.tables(bits) if bits else None
        encode_corpus(encoder, self.passages, out, tables=tables, progress=False)
        return Store(out)


def points(task: Task, name: str, directory: Path, known: Sequence[str], progress: bool) -> Iterator[dict[str, Any]]:
    """The points of one reader that are not known yet."""
    wanted = [(keep, share, preset) for (keep, share), preset in itertools.product(STORES, PRESETS)]
    wanted = [point for point in wanted if key(name, *point) not in known]
    if not wanted:
        return
    reader = load_reader(directory)
    statistics = load_token_statistics(directory, reader)
    if statistics is None:
        _, statistics = calibrate(reader, read_passages(task.passages), task.length)
    questions = list(read_questions(task.questions, task.name, reader.tokenizer))
    with TemporaryDirectory() as work:
        plain = task.store(reader, Path(work) / "plain", 1.0, None, 0)
        timed = [
            Question(pad_queries([reader.tokenizer.encode(question.query)]), [p["id"] for p in question.passages])
            for question in questions[:TIMED_QUESTIONS]
        ]
        atlas = Contender("atlas", ReaderEngine(reader, "atlas"), plain)
        opened: dict[tuple[float, float], Store] = {(1.0, 1.0): plain}
        for keep, share, preset in tqdm(wanted, desc=name, unit=" points", disable=not progress):
            if (keep, share) not in opened:
                bits = 0 if share == 1 else round(share * reader.channels)
                opened[keep, share] = task.store(reader, Path(work) / f"{keep}-{share}", keep, statistics, bits)
            store = opened[keep, share]
            engine = ReaderEngine(reader, "btr", PRESETS[preset], beside=atlas.engine)
            results = Answerer(engine, store, task.new_tokens).answer(questions)
            scores = evaluate_results([(f"question {i}", result) for i, result in enumerate(results)], task.name)
            report = store_report(store.directory)["bytes_per_token"]
            yield {
                "reader": name, "keep": keep, "bits": share, "preset": preset, **scores,
                "bytes_per_token": report["total"] - report["token ids"] * (store is plain),
                "state_bytes_per_token": report["states"], "speedup": speedup(
                    atlas, Contender("btr", engine, store), timed, task.new_tokens
                ),
            }  # fmt: skip


def speedup(atlas: Contender, contender: Contender, questions: Sequence[Question], new_tokens: int) -> float:
    """The median over questions, each read by both, of Atlas' time over the other's."""
    for each in (atlas, contender):
        each.read(questions[0], new_tokens)
    ratios = []
    for question in questions:
        slow, _ = atlas.read(question, new_tokens)
        fast, _ = contender.read(question, new_tokens)
        ratios.append(slow / fast)
    return statistics.median(ratios)


def key(reader: str, keep: float, bits: float, preset: str) -> str:
    return f"{reader}, {keep:.0%} of tokens, {bits:.0%} of bits, {preset}"


def draw(report: dict[str, Any], path: Path) -> None:
    """Two panels: the metric against bytes per token, and against the speed-up; a colour a preset, a mark a reader."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(point["reader"] for point in report["points"]))
    for (number, name), (colour, preset) in itertools.product(
        enumerate(names), zip(("#4477aa", "#ccbb44", "#ee6677"), PRESETS, strict=True)
    ):
        chosen = [p for p in report["points"] if p["reader"] == name and p["preset"] == preset]
        chosen.sort(key=lambda point: point["bytes_per_token"])
        style = {"color": colour, "marker": "os^Dv"[number % 5], "markersize": 5}
        scores = [point[report["metric"]] for point in chosen]
        # A line is of as many tokens, with fewer and fewer bits of each.
        for keep in dict.fromkeys(point["keep"] for point in chosen):
            of_keep = [point for point in chosen if point["keep"] == keep]
            sizes = [point["bytes_per_token"] for point in of_keep]
            left.plot(sizes, [point[report["metric"]] for point in of_keep], linewidth=0.8, **style)
        right.plot([point["speedup"] for point in chosen], scores, linestyle="none", label=f"{name}, {preset}", **style)
    left.set_xscale("log")
    left.set_xlabel("bytes per token of the store, all included but tables; lines: as many tokens, fewer bits")
    left.set_ylabel(f"{report['metric'].replace('_', ' ')}, %")
    right.set_xlabel("questions per second, times Atlas'")
    right.legend(fontsize=8, title="reader, merging while reading")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{report['task']}, {report['questions']} questions, {report['machine']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("passages", type=Path)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--reader", action="append", required=True, metavar="NAME=DIR", help="may be given repeatedly")
    parser.add_argument("--passage-length", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=8, help="that are decoded for each question")
    parser.add_argument("--same-id-first", action="store_true", help="merge as btr encode --same-id-first")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    readers = {name: Path(directory) for name, _, directory in (text.partition("=") for text in arguments.reader)}
    task = Task(
        arguments.task, arguments.passages, arguments.questions, arguments.passage_length, arguments.new_tokens,
        arguments.same_id_first,
    )  # fmt: skip
    inputs = {name: file_digest(directory / WEIGHTS_FILE) for name, directory in readers.items()}
    inputs |= {"passages": file_digest(task.passages), "questions": file_digest(task.questions)}
    inputs |= {name: getattr(task, name) for name in ("length", "new_tokens", "same_id_first")}
    report: dict[str, Any] = {"inputs": inputs, "points": []}
    if arguments.json.exists():
        report = read_json_object(arguments.json, "damaged results")
        if report.get("inputs") != inputs:
            raise SystemExit(
                f"{arguments.json}: of other readers, questions or settings: remove it or name another file"
            )
    report |= {
        "task": task.name,
        "metric": "accuracy" if task.name in ("fever", "mmlu") else "exact_match",
        "questions": sum(1 for _ in task.questions.open()),
        "machine": f"{cpu_model()}, {arguments.threads} thread(s), torch {torch.__version__}",
    }
    known = [key(p["reader"], p["keep"], p["bits"], p["preset"]) for p in report["points"]]
    for name, directory in readers.items():
        for point in points(task, name, directory, known, progress=True):
            report["points"].append(point)
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            write_durably(arguments.json, (json.dumps(report, indent=2) + "\n").encode())
    for p in report["points"]:
        name = key(p["reader"], p["keep"], p["bits"], p["preset"])
        print(f"{name:<60} {p[report['metric']]:6.1f}%  {p['bytes_per_token']:6.2f} B/token  {p['speedup']:5.2f}x")
    if arguments.plot is not None:
        draw(report, arguments.plot)


if __name__ == "__main__":
    main()
