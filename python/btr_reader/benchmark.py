"""End-to-end reading throughput: Atlas, DeFormer and BTR side by side in one process, in alternating rounds."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

import btr_kernels
from btr_kernels.env import cpu_model

from .batches import QueryBatch, pad_queries
from .compression import PRESETS, Preset
from .corpus import topic_passages
from .encoding import PassageEncoder, calibrate_residual_scale, fill_store
from .engine import Form, ReaderEngine
from .passages import Passage, parse_passage, read_passages
from .reader import Reader, random_reader
from .settings import SHAPES, CutPoint, ReaderSettings, ShapeName, t5_config
from .stages import STAGES, StageClock
from .store import Store, StoreWriter
from .tasks import SENTINEL
from .tokenizer import ReaderTokenizer

# Questions take turns, so that no round reads the passages of the one before.
QUERIES = 4
# Passages that are encoded offline for the run; questions with more passages share some.
MINIMUM_POOL = 40


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured. Lengths are in tokens; `new_tokens` are decoded exactly, without an early stop."""

    shape: ShapeName = "base"
    passages: int = 10
    passage_length: int = 128
    query_length: int = 20
    new_tokens: int = 8
    preset: Preset = "aggressive"
    cut_point: CutPoint = "attention_output"
    precision: str = "exact"
    repeats: int = 5
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("passages", 1),
            ("passage_length", 8),
            ("query_length", 2),
            ("new_tokens", 1),
            ("repeats", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        for name, known in (("shape", SHAPES), ("preset", PRESETS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Contender:
    """One form of the reader over its own store."""

    name: Form
    engine: ReaderEngine
    store: Store

    def read(self, query: QueryBatch, passage_ids: list[str], new_tokens: int) -> tuple[float, dict[str, float]]:
        """Answers one question; returns the wall seconds in all and by stage."""
        clock = StageClock()
        start = perf_counter()
        with clock("fetch"):
            fetch = self.store.fetch_tokens if self.name == "atlas" else self.store.fetch
            passages = fetch([passage_ids])
        self.engine.generate(query, passages, new_tokens, stop_at_end=False, clock=clock)
        return perf_counter() - start, clock.seconds


def run_benchmark(
    settings: BenchmarkSettings, passages_file: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Measures and returns the report (see `btr bench --json`).

    The readers have random weights of the true shape and read real text: a passages file in Atlas' format, or the
    reference topics that ship with Python. States that DeFormer and BTR keep are made beforehand and not timed.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads_before)
    try:
        with TemporaryDirectory(prefix="btr-bench-") as scratch:
            bench = _Bench(settings, passages_file, Path(scratch), progress)
            return bench.report(bench.measure())
    finally:
        torch.set_num_threads(threads_before)


class _Bench:
    def __init__(self, settings: BenchmarkSettings, passages_file: Path | None, scratch: Path, progress: bool):
        self.settings = settings
        self.progress = progress
        self.corpus = "pydoc_data.topics" if passages_file is None else str(passages_file)
        with self._bar("prepare: reader", 1) as bar:
            reader, self.pool = self._reader_and_pool(passages_file)
            bar.update()
        self.queries = [self._query(reader.tokenizer, number) for number in range(QUERIES)]
        self.compression = PRESETS[settings.preset]
        self.contenders = self._contenders(reader, scratch)

    def _bar(self, description: str, total: int) -> tqdm:
        return tqdm(desc=description, total=total, disable=not self.progress, file=sys.stderr)

    def _reader_and_pool(self, passages_file: Path | None) -> tuple[Reader, list[Passage]]:
        config, cut = t5_config(self.settings.shape), SHAPES[self.settings.shape].cut_layer
        if passages_file is None:
            source = [parse_passage(record, "topics") for record in topic_passages()]
        else:
            # A tokenizer and a pool need no more than this of a corpus of any size.
            source = list(itertools.islice(read_passages(passages_file), 5000))
        texts = [passage.text for passage in source]
        reader = random_reader(
            config, ReaderSettings(cut, self.settings.cut_point), texts=texts, seed=self.settings.seed
        )
        wanted = max(MINIMUM_POOL, self.settings.passages)
        pool = list(itertools.islice(_full_passages(source, reader.tokenizer, self.settings.passage_length), wanted))
        if len(pool) < wanted:
            raise ValueError(
                f"{self.corpus}: the text gives only {len(pool)} passages of {self.settings.passage_length} tokens, "
                f"{wanted} are needed"
            )
        return reader, pool

    def _query(self, tokenizer: ReaderTokenizer, number: int) -> QueryBatch:
        """A question of exactly `query_length` tokens, the sentinel last, made of the words of one of its passages."""
        text = f"question: {self.pool[self._first_passage(number)].text} answer:"
        ids = tokenizer.encode(text)[: self.settings.query_length - 1]
        return pad_queries([ids + tokenizer.encode(SENTINEL)])

    def _first_passage(self, number: int) -> int:
        return number * self.settings.passages % len(self.pool)

    def _passage_ids(self, number: int) -> list[str]:
        first = self._first_passage(number)
        return [self.pool[(first + i) % len(self.pool)].id for i in range(self.settings.passages)]

    def _contenders(self, reader: Reader, scratch: Path) -> list[Contender]:
        # DeFormer keeps whole-layer outputs: that leaves its runtime the least to do.
        deformer = reader.with_settings(ReaderSettings(reader.settings.cut_layer, "layer_output"))
        with self._bar("prepare: states offline", 2 * len(self.pool)) as bar:
            floats = self._store(deformer, "float32", 1.0, scratch / "deformer", bar)
            bits = self._store(reader, "binary", self.compression.offline, scratch / "btr", bar)
        scale = calibrate_residual_scale(reader, self.pool[:8], self.settings.passage_length)
        calibrated = Reader(reader.model, reader.tokenizer, reader.settings, scale)
        return [
            Contender("atlas", ReaderEngine(reader, "atlas"), floats),
            Contender("deformer", ReaderEngine(deformer, "deformer"), floats),
            Contender("btr", ReaderEngine(calibrated, "btr", self.compression, self.settings.precision), bits),
        ]

    def _store(self, reader: Reader, kind: str, keep: float, out: Path, bar: tqdm) -> Store:
        encoder = PassageEncoder(reader, kind, keep, self.settings.passage_length)
        with StoreWriter(out, encoder.store_settings(self.corpus, len(self.pool))) as writer:
            fill_store(encoder, self.pool, writer, 8, bar)
        return Store(out)

    def measure(self) -> dict[str, list[tuple[float, dict[str, float]]]]:
        """Seconds in all and by stage, of every contender in every round; a first round only warms up."""
        rounds: dict[str, list[tuple[float, dict[str, float]]]] = {c.name: [] for c in self.contenders}
        with self._bar("rounds", (self.settings.repeats + 1) * len(self.contenders)) as bar:
            for number in range(-1, self.settings.repeats):
                question = number % QUERIES
                # The order turns with the rounds: no contender always runs after the same one.
                turn = number % len(self.contenders)
                for contender in self.contenders[turn:] + self.contenders[:turn]:
                    bar.set_postfix_str(contender.name)
                    sample = contender.read(
                        self.queries[question], self._passage_ids(question), self.settings.new_tokens
                    )
                    if number >= 0:
                        rounds[contender.name].append(sample)
                    bar.update()
        return rounds

    def report(self, rounds: dict[str, list[tuple[float, dict[str, float]]]]) -> dict[str, Any]:
        readers = {name: _summary(samples) for name, samples in rounds.items()}
        atlas = readers["atlas"]["seconds"]
        return {
            "shape": self.settings.shape,
            "device": device_name(),
            "settings": {
                **asdict(self.settings),
                "threads": torch.get_num_threads(),
                "corpus": self.corpus,
                "keep": asdict(self.compression),
                "cut_layer": self.contenders[0].engine.reader.settings.cut_layer,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "backend": btr_kernels.current_backend(),
            },
            "readers": readers,
            "speedup": {name: atlas / readers[name]["seconds"] for name in readers if name != "atlas"},
            "speedup_by_round": {name: _paired(rounds["atlas"], rounds[name]) for name in readers if name != "atlas"},
        }


def _full_passages(source: Iterable[Passage], tokenizer: ReaderTokenizer, length: int) -> Iterator[Passage]:
    """Passages of at least `length` tokens: consecutive short ones are joined under the first one's title."""
    title, texts = "", []
    for number, passage in enumerate(source):
        title = title if texts else passage.title
        texts.append(passage.text)
        joined = Passage(f"bench-{number}", title, " ".join(texts))
        if len(tokenizer.encode(joined.reader_text)) >= length:
            yield joined
            texts = []


def _summary(samples: list[tuple[float, dict[str, float]]]) -> dict[str, Any]:
    totals = [seconds for seconds, _ in samples]
    median = statistics.median(totals)
    return {
        "queries_per_second": 1 / median,
        "seconds": median,
        "spread": {"minimum": min(totals), "maximum": max(totals), "rounds": len(totals)},
        "stages": {stage: statistics.median(stages[stage] for _, stages in samples) for stage in STAGES},
    }


def _paired(
    atlas: list[tuple[float, dict[str, float]]], other: list[tuple[float, dict[str, float]]]
) -> dict[str, float]:
    """Spread of the speed-up over Atlas within each round: what is left of a machine's noise after alternation."""
    ratios = [slow / fast for (slow, _), (fast, _) in zip(atlas, other, strict=True)]
    return {"minimum": min(ratios), "median": statistics.median(ratios), "maximum": max(ratios)}


def device_name() -> str:
    """The processor's name and the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu: {cpu_model()}, {cores} cores"
