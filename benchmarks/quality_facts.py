"""Fact lookup in the formats of all five tasks: a teacher from nothing, and what its students keep on stored bits.

    nice -n 10 python benchmarks/quality_facts.py --work DIR [--tasks nq fever ...] [--json FILE]

Nothing here but `btr` commands, which are printed. Questions are generated, with passages that BM25 ranks (`btr
make-facts`). A reader and a BTR student of it learn to look facts up in one of two passages that are drawn at random.
For each task a teacher goes on from the one (for FEVER and MMLU by way of easy questions in their formats) and a
student from the other, and from that student another one, on 32 of 64 bits of seven tenths of the tokens and with
runtime merging. All are scored on questions of their own, the students on stored bits. Run again it goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from time import perf_counter

import torch

from btr_kernels.env import cpu_model
from btr_reader.cli import main as btr
from btr_reader.files import write_durably
from btr_reader.jsonl import read_json_object
from btr_reader.store import store_report
from btr_reader.tasks import TASKS

PASSAGES, LENGTH, QUESTIONS = 4, 18, 500
TRAINING = (
    "--passages",
    PASSAGES,
    "--passage-length",
    LENGTH,
    "--batch-size",
    32,
    "--learning-rate",
    2e-3,
    "--evaluate-every",
    100,
    "--patience",
    100,
)
#: Options of the students: of training, of encoding, of reading.
STUDENTS = {
    "btr": ((), (), ()),
    "btr, compressed": (
        ("--offline", 0.7, "--joint", 0.9, "--decoder", 0.7, "--masked-bits", 32, "--same-id-first"),
        ("--keep", 0.7, "--masked-bits", 32, "--same-id-first", "--original-ids", "drop"),
        ("--preset", "paper"),
    ),
}


class Steps:
    """Commands that are run once, and what is known of them after."""

    def __init__(self, path: Path):
        self._path = path
        self._done = read_json_object(path, "damaged record of steps") if path.exists() else {}

    def run(self, *command: object) -> float:
        """Runs `btr COMMAND` unless it was run before; the seconds that it took when it came to its end."""
        arguments = [str(argument) for argument in command]
        name = shlex.join(arguments)
        if name not in self._done:
            print(f"btr {name}", flush=True)
            start = perf_counter()
            if btr(arguments):
                raise SystemExit(1)
            self._done[name] = perf_counter() - start
            write_durably(self._path, (json.dumps(self._done, indent=2) + "\n").encode())
        return self._done[name]


def beginners(steps: Steps, work: Path, train: int, length: int) -> tuple[Path, Path]:
    """A teacher and a student of it that have learned to look facts up, in one of two passages."""
    facts, common = work / "easy", ("--passages", 2, "--drawn", 1.0)
    steps.run("make-facts", "--task", "nq", "--train", train, *common, "--out", facts)
    steps.run(
        "init-reader", "--shape", "tiny", "--cut-layer", 1, "--tokenizer", facts / "tokenizer", "--out", work / "start"
    )
    files = ("--train", facts / "train.jsonl", "--dev", facts / "dev.jsonl", "--task", "nq")
    options = (*files, *TRAINING, "--steps", length)
    steps.run("train", "teacher", "--reader", work / "start", *options, "--out", work / "beginner")
    teacher, student = work / "beginner" / "best", work / "beginner-student"
    steps.run("train", "btr", "--reader", teacher, "--teacher", teacher, *options, "--out", student)
    return teacher, student / "best"


def in_its_format(steps: Steps, task: str, work: Path, beginner: Path, train: int, length: int) -> Path:
    """A beginner that has learned to answer in a format of its own, before passages become hard."""
    work.mkdir(exist_ok=True)
    facts = work / "facts"
    steps.run("make-facts", "--task", task, "--train", train, "--passages", 2, "--drawn", 1.0, "--out", facts)
    files = ("--train", facts / "train.jsonl", "--dev", facts / "dev.jsonl", "--task", task)
    steps.run(
        "train", "teacher", "--reader", beginner, *files, *TRAINING, "--steps", length, "--out", work / "beginner"
    )
    return work / "beginner" / "best"


def scored(steps: Steps, task: str, out: Path, *reading: object) -> float:
    """The task's metric, in percent, of the reader's answers."""
    steps.run(
        "eval", "--task", task, "--passages", PASSAGES, "--max-new-tokens", 4, "--batch-size", 25, *reading,
        "--out", out.with_suffix(".jsonl"), "--overwrite", "--json", out.with_suffix(".json"),
    )  # fmt: skip
    metrics = read_json_object(out.with_suffix(".json"), "damaged metrics")
    return metrics["accuracy" if task in ("fever", "mmlu") else "exact_match"]


def measured(
    steps: Steps, task: str, work: Path, beginners: tuple[Path, Path], students: int, train: int, length: int
) -> dict:
    """A teacher, and the first so many of the students, of one task."""
    beginner, start = beginners
    work.mkdir(exist_ok=True)
    facts, test = work / "facts", work / "test"
    common = ("--task", task, "--passages", PASSAGES)
    steps.run("make-facts", *common, "--train", train, "--out", facts, "--seed", 1)
    steps.run("make-facts", *common, "--train", 1, "--dev", QUESTIONS, "--out", test, "--seed", 2)
    files = ("--train", facts / "train.jsonl", "--dev", facts / "dev.jsonl", "--task", task)
    options = (*files, *TRAINING, "--steps")
    if task in ("fever", "mmlu"):
        beginner = in_its_format(steps, task, work / "easy", beginner, train, 3 * length // 2)
    seconds = steps.run("train", "teacher", "--reader", beginner, *options, length, "--out", work / "teacher")
    teacher, questions = work / "teacher" / "best", test / "dev.jsonl"
    score = scored(steps, task, work / "teacher-test", "--reader", teacher, "--questions", questions)
    row: dict = {"teacher": {"score": score, "training_seconds": seconds}, "students": {}}
    for number, (name, (training, encoding, reading)) in enumerate(list(STUDENTS.items())[:students]):
        out, store = work / f"student-{number}", work / f"store-{number}"
        seconds = steps.run(
            "train", "btr", "--reader", start, "--teacher", teacher, *options, length, *training, "--out", out
        )
        start = reader = out / "best"
        steps.run(
            "encode", test / "passages.jsonl", "--reader", reader, "--passage-length", LENGTH, *encoding,
            "--out", store,
        )  # fmt: skip
        kept = scored(
            steps, task, work / f"student-{number}-test", "--reader", reader, "--store", store,
            "--questions", questions, *reading,
        )  # fmt: skip
        report = store_report(store)["bytes_per_token"]
        row["students"][name] = {
            "score": kept,
            "kept": kept / score if score else None,
            "stored_bits_per_token": 8 * report["states"],
            "bytes_per_token": report["total"],
            "training_seconds": seconds,
            "training_options": [str(option) for option in training],
        }
    return row


def table(results: dict) -> str:
    """Scores on the questions that nothing was chosen by, in Markdown."""
    columns = ["task", "teacher", *(f"{name}, kept" for name in STUDENTS), "bytes per token", "minutes of training"]
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " --: |" * (len(columns) - 1)]
    for task, row in results["tasks"].items():
        students = list(row["students"].values())
        scores = [f"{student['score']:.1f}%, {student['kept'] or 0:.1%}" for student in students]
        scores += ["-"] * (len(STUDENTS) - len(students))
        sizes = ", ".join(f"{student['bytes_per_token']:.1f}" for student in students)
        seconds = [row["teacher"]["training_seconds"], *(student["training_seconds"] for student in students)]
        minutes = ", ".join(f"{each / 60:.0f}" for each in seconds)
        lines.append("| " + " | ".join([task, f"{row['teacher']['score']:.1f}%", *scores, sizes, minutes]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory for readers, stores and checkpoints")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--compressed", nargs="*", choices=TASKS, default=list(TASKS), help="tasks that have the second student as well"
    )
    parser.add_argument("--json", type=Path, help="results file; it is replaced after every task")
    parser.add_argument("--train", type=int, default=16000, help="questions to train on, for each task")
    parser.add_argument("--steps", type=int, default=1000, help="of each training run; twice as many for the first two")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    steps = Steps(arguments.work / "steps.json")
    results: dict = {
        "command": f"python benchmarks/quality_facts.py --train {arguments.train} --steps {arguments.steps}",
        "machine": f"{cpu_model()}, {arguments.threads} thread(s), torch {torch.__version__}",
        "questions": QUESTIONS,
        "passages": PASSAGES,
        "tasks": {},
    }
    first = beginners(steps, arguments.work, arguments.train, 2 * arguments.steps)
    for task in arguments.tasks:
        row = measured(
            steps, task, arguments.work / task, first, 1 + (task in arguments.compressed), arguments.train,
            arguments.steps,
        )  # fmt: skip
        results["tasks"][task] = row
        if arguments.json is not None:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            write_durably(arguments.json, (json.dumps(results, indent=2) + "\n").encode())
    print(table(results))


if __name__ == "__main__":
    main()
