"""What a BTR student keeps of its teacher's quality: an extractive reader on real questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from btr_reader.extractive.examples import read_span_examples
from btr_reader.extractive.reader import load_extractive_reader
from btr_reader.jsonl import read_jsonl, write_jsonl
from btr_reader.passages import read_passages
from btr_reader.retrieval.bm25 import Bm25Retriever
from btr_reader.settings import ReaderSettings
from btr_reader.training.extractive import ExtractiveSettings, ExtractiveTrainer
from btr_reader.training.settings import Objectives

CUT = ReaderSettings(4, "layer_output")
LENGTH = 128


def prepare(data: Path, work: Path) -> None:
    """Questions with their gold passage and the best other one that BM25 finds for them."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not (arguments.work / "dev.jsonl").exists():
        prepare(arguments.data, arguments.work)
    train, dev = (read_span_examples(arguments.work / f"{name}.jsonl") for name in ("train", "dev"))
    settings = ExtractiveSettings(
        steps=850, batch_size=16, passages=2, passage_length=LENGTH, learning_rate=3e-4, precision="bfloat16",
        evaluate_every=170, checkpoint_every=85, weight_decay=0.01,
        objectives=Objectives(recovery=0.0, distillation=0.0, divergence=0.0),
    )  # fmt: skip
    trainer = ExtractiveTrainer(
        load_extractive_reader(arguments.model, CUT), "atlas", settings, arguments.work / "teacher-0"
    )
    print(trainer.train(train, dev))


if __name__ == "__main__":
    main()
