"""Readers, stores and questions of a benchmark: random weights of the true shape over real text."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from ..batches import QueryBatch, pad_queries
from ..centroids import centroid_code
from ..corpus import topic_passages
from ..encoding import PassageEncoder, calibrate_residual_scale, fill_store
from ..engine import ReaderEngine
from ..passages import Passage, parse_passage, read_passages
from ..reader import Reader, random_reader
from ..settings import SHAPES, ReaderSettings, t5_config
from ..shares import Compression
from ..stages import StageClock
from ..store import Store, StoreWriter
from ..tasks import SENTINEL
from ..tokenizer import ReaderTokenizer
from .settings import READERS, BenchmarkSettings

#: Questions take turns, so that no round reads the passages of the one before.
QUERIES = 4
#: Passages that are encoded offline for the run; questions with more passages share some.
MINIMUM_POOL = 40


@dataclass(frozen=True)
class Question:
    query: QueryBatch
    passage_ids: list[str]


@dataclass(frozen=True)
class Contender:
    """One reader over its own store."""

    name: str
    engine: ReaderEngine
    store: Store

    def read(self, question: Question, new_tokens: int) -> tuple[float, dict[str, float]]:
        """Answers one question; returns the seconds in all and by stage."""
        clock = StageClock(self.engine.reader.device)
        start = perf_counter()
        with clock("fetch"):
            passages = self.engine.fetch(self.store, [question.passage_ids])
        self.engine.generate(question.query, passages, new_tokens, stop_at_end=False, clock=clock)
        return perf_counter() - start, clock.seconds

    def memory_tokens(self, question: Question) -> int:
        """Tokens that the decoder attends to."""
        memory = self.engine.encode(question.query, self.engine.fetch(self.store, [question.passage_ids]))
        return int((memory.sizes > 0).sum())


class Field:
    """Everything that contenders are made of. What DeFormer and BTR keep is made here and not timed."""

    def __init__(self, settings: BenchmarkSettings, passages_file: Path | None, scratch: Path, progress: bool):
        self.settings = settings
        self.progress = progress
        self.corpus = "pydoc_data.topics" if passages_file is None else str(passages_file)
        self._scratch = scratch
        self._stores: dict[tuple[str, float, bool], Store] = {}
        self._engines: dict[str, ReaderEngine] = {}  # one for each kind of linears, whose weights the others share
        with self.bar("prepare: reader", 1) as bar:
            reader, self._pool = self._reader_and_pool(passages_file)
            scale = calibrate_residual_scale(reader, self._pool[:8], settings.passage_length)
            reader = replace(reader, residual_scale=scale)
            self.reader = reader.to(settings.device, getattr(torch, settings.dtype))
            bar.update()
        self.questions = [self._question(number) for number in range(QUERIES)]

    def bar(self, description: str, total: int) -> tqdm:
        return tqdm(desc=description, total=total, disable=not self.progress, file=sys.stderr)

    def contender(self, name: str, compression: Compression) -> Contender:
        """The reader of that name in `READERS`; compression concerns those of the form `btr`."""
        form, linears, centroids = READERS[name]
        beside = self._engines.get(linears)
        if form == "btr":
            reader = self._coded if centroids else self.reader
            engine = ReaderEngine(reader, form, compression, self.settings.precision, linears, beside=beside)
            store = self._store(reader, "binary", compression.offline)
        else:
            # DeFormer keeps whole-layer outputs: that leaves its runtime the least to do.
            reader = self._whole_layers() if form == "deformer" else self.reader
            engine = ReaderEngine(reader, form, linears=linears, beside=beside)
            store = self._store(self._whole_layers(), "float32", 1.0)
        self._engines.setdefault(linears, engine)
        return Contender(name, engine, store)

    def _whole_layers(self) -> Reader:
        return self.reader.with_settings(ReaderSettings(self.reader.settings.cut_layer, "layer_output"))

    @cached_property
    def _coded(self) -> Reader:
        plain, length = replace(self.reader, residual_scale=None), self.settings.passage_length
        ones = torch.ones(plain.channels)
        code = centroid_code(plain, self._pool[:8], length, ones, 0 * ones, ones, plain.channels // 4)
        return replace(plain, code=code.to(plain.device))

    def _store(self, reader: Reader, kind: str, keep: float) -> Store:
        key = (kind, keep, reader.code is not None)
        if key not in self._stores:
            encoder = PassageEncoder(reader, kind, keep, self.settings.passage_length)
            out = self._scratch / f"{kind}-{len(self._stores)}"
            with (
                self.bar(f"prepare: {kind} states, {keep:.0%} kept", len(self._pool)) as bar,
                StoreWriter(out, encoder.store_settings(self.corpus, len(self._pool)), tables=encoder.tables) as writer,
            ):
                fill_store(encoder, self._pool, writer, 8, bar)
            self._stores[key] = Store(out)
        return self._stores[key]

    def _reader_and_pool(self, passages_file: Path | None) -> tuple[Reader, list[Passage]]:
        settings = self.settings
        config, cut = t5_config(settings.shape), SHAPES[settings.shape].cut_layer
        if passages_file is None:
            source = [parse_passage(record, "topics") for record in topic_passages()]
        else:
            # A tokenizer and a pool need no more than this of a corpus of any size.
            source = list(itertools.islice(read_passages(passages_file), 5000))
        texts = [passage.text for passage in source]
        reader = random_reader(config, ReaderSettings(cut, settings.cut_point), texts=texts, seed=settings.seed)
        wanted = max(MINIMUM_POOL, settings.passages)
        pool = list(itertools.islice(_full_passages(source, reader.tokenizer, settings.passage_length), wanted))
        if len(pool) < wanted:
            raise ValueError(
                f"{self.corpus}: the text gives only {len(pool)} passages of {settings.passage_length} tokens, "
                f"{wanted} are needed"
            )
        return reader, pool

    def _question(self, number: int) -> Question:
        """A question of exactly `query_length` tokens, the sentinel last, made of the words of one of its passages."""
        tokenizer, count = self.reader.tokenizer, self.settings.passages
        first = number * count % len(self._pool)
        text = f"question: {self._pool[first].text} answer:"
        ids = tokenizer.encode(text)[: self.settings.query_length - 1]
        passage_ids = [self._pool[(first + i) % len(self._pool)].id for i in range(count)]
        return Question(pad_queries([ids + tokenizer.encode(SENTINEL)]), passage_ids)


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
