"""What every way to compress a store costs in bytes and in fidelity, measured on real text.

The corpus is encoded once, as plain bits; every other store is made of those bits and read back through `Store`, so
that what is measured is what a reader gets. Three figures for each: the bits that come back flipped; the cosine of the
encoder's final states, after the joint layers, with those of the reader on undistorted bits; and with those of the
same reader on the float states.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .batches import PassageBatch, QueryBatch, pad_queries
from .encoding import PassageEncoder, fill_store
from .engine import ReaderEngine
from .passages import Passage
from .reader import Reader
from .recoding import chunks, flipped_share, recode_store, statistics_of
from .store import Store, StoreWriter, store_report
from .token_statistics import TokenStatistics

QUESTION = "question: what is this passage about? answer: <extra_id_0>"
# Of a passage's tokens, what merging of equal ids leaves where something else compresses further.
SAME_ID_KEEP = 0.8
_BATCH = 8
_SHARD_PASSAGES = 1024


@dataclass(frozen=True)
class Costs:
    """Bytes per original token besides states: ids are those of the original token ids, other those of passage ids,
    offsets and overhead. width: bytes of a token's bits; channels: d."""

    width: int
    channels: int
    ids: int
    other: float

    @classmethod
    def of_store(cls, plain: Store, original_ids: bool) -> Costs:
        """Those of the stores made of a store of plain bits."""
        report = store_report(plain.directory)["bytes_per_token"]
        other = report["passage ids"] + report["offsets"] + report["overhead"]
        ids = round(report["token ids"]) if original_ids else 0
        return cls(plain.settings.row_width, plain.settings.channels, ids, other)

    def of(self, keep: float) -> float:
        """Ids, slots, passage ids and offsets, where a share of the tokens is kept and states need no ids."""
        return self.ids + (keep < 1) + self.other


@dataclass(frozen=True)
class Mechanism:
    """A way to compress, with a size to set: `options(bytes)` gives the store's settings for that many bytes per token.

    The bytes are for a kept token's states (or indexes and codebook) and ids and slots, per original token.
    """

    name: str
    options: Callable[[float, Costs], dict[str, Any]]


def _merging(same_id_first: bool) -> Callable[[float, Costs], dict[str, Any]]:
    def options(size: float, costs: Costs) -> dict[str, Any]:
        return {"keep": (size - costs.of(0.5)) / costs.width, "same_id_first": same_id_first}

    return options


def _masked(keep: float) -> Callable[[float, Costs], dict[str, Any]]:
    def options(size: float, costs: Costs) -> dict[str, Any]:
        # Without original ids the kept tokens' are stored all the same.
        fixed = costs.of(keep) + (0 if costs.ids else 2 * keep)
        bits = 8 * math.floor((size - fixed) / keep)
        return {"keep": keep, "same_id_first": keep < 1, "masked_bits": min(bits, costs.channels)}

    return options


def _codebook(keep: float) -> Callable[[float, Costs], dict[str, Any]]:
    return lambda size, costs: {"keep": keep, "same_id_first": keep < 1, "codebook_bytes": size}


MECHANISMS = (
    Mechanism("merging", _merging(False)),
    Mechanism("merging, equal ids first", _merging(True)),
    Mechanism("masked bits", _masked(1.0)),
    Mechanism(f"equal ids to {SAME_ID_KEEP:.0%}, masked bits", _masked(SAME_ID_KEEP)),
    Mechanism("codebook", _codebook(1.0)),
    Mechanism(f"equal ids to {SAME_ID_KEEP:.0%}, codebook", _codebook(SAME_ID_KEEP)),
)


def compare_storage(
    reader: Reader,
    passages: Sequence[Passage],
    statistics: TokenStatistics | None = None,
    *,
    ratios: Sequence[float] = (48, 64, 80, 101, 128),
    passage_length: int = 200,
    sample: int = 64,
    original_ids: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Makes stores of about 4 d / ratio bytes per token with every mechanism and measures them.

    reader: calibrated. statistics: what masked bits are chosen by; None for those of the passages themselves. ratios:
    to the float32 states of a DeFormer store. sample: passages, spread over the corpus, whose final states are
    compared; flipped bits are counted in all.

    Returns {"settings", "rows"}; a row has mechanism, its options, bytes_per_token (in all and by component), ratio,
    flipped_bits (a share), cosine_to_bits and cosine_to_floats (means over original tokens). A size that a mechanism
    cannot reach has {"unreachable": why} instead of figures. Raises `ValueError` for an empty corpus.
    """
    if not passages or sample < 1 or not ratios or min(ratios) <= 0:
        raise ValueError(
            f"passages, sample and ratios must not be empty, and ratios positive; got {len(passages)} passages, "
            f"sample {sample}, ratios {list(ratios)}"
        )
    if reader.code is not None:
        raise ValueError("reader: must be one of plain bits, got one that was trained with centroids")
    with TemporaryDirectory(prefix="btr-compare-") as scratch:
        run = _Comparison(reader, passages, statistics, passage_length, sample, original_ids, Path(scratch), progress)
        rows = [run.row("plain bits", {})]
        wanted = [(mechanism, ratio) for mechanism in MECHANISMS for ratio in ratios]
        for mechanism, ratio in tqdm(wanted, desc="mechanisms", disable=not progress):
            size = 4 * reader.config.d_model / ratio
            rows.append(run.row(mechanism.name, mechanism.options(size, run.costs)) | {"asked_for": size})
        return {"settings": run.settings(), "rows": rows}


class _Comparison:
    def __init__(
        self,
        reader: Reader,
        passages: Sequence[Passage],
        statistics: TokenStatistics | None,
        passage_length: int,
        sample: int,
        original_ids: bool,
        scratch: Path,
        progress: bool,
    ):
        self._reader = reader
        self._scratch = scratch
        self._own_statistics = statistics is None
        encoder = PassageEncoder(reader, passage_length=passage_length)
        self._plain_settings = encoder.store_settings("comparison", _SHARD_PASSAGES)
        self._wanted = replace(self._plain_settings, original_ids=original_ids)
        with (
            tqdm(desc="encode", unit=" passages", total=len(passages), disable=not progress) as bar,
            StoreWriter(scratch / "plain", self._plain_settings) as writer,
        ):
            fill_store(encoder, passages, writer, 32, bar)
        self._plain = Store(scratch / "plain")
        self._statistics = statistics_of(self._plain) if statistics is None else statistics
        self.costs = Costs.of_store(self._plain, original_ids)
        step = max(1, len(passages) // sample)
        self._sample = [passages[i].id for i in range(0, len(passages), step)][:sample]
        self._question = pad_queries([reader.tokenizer.encode(QUESTION)])
        self._engine = ReaderEngine(reader, "btr")
        chosen = set(self._sample)
        sampled = [passage for passage in passages if passage.id in chosen]
        self._on_bits = list(self._final_states(self._plain))
        on_floats = ReaderEngine(reader, "deformer", beside=self._engine)
        self._on_floats = list(_final_states_of_floats(on_floats, encoder, sampled, self._question))

    def settings(self) -> dict[str, Any]:
        manifest = self._plain.manifest
        return {
            "channels": self._plain_settings.channels,
            "cut": asdict(self._plain_settings.cut),
            "passages": manifest.total("passages"),
            "tokens": manifest.total("original_tokens"),
            "vocabulary": self._plain_settings.vocabulary,
            "sample": len(self._sample),
            "original_ids": self._wanted.original_ids,
            "statistics": "of the corpus itself" if self._own_statistics else "of the reader",
            "statistics_tokens": int(self._statistics.tokens.sum()),
        }

    def row(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """The figures of one store."""
        row: dict[str, Any] = {"mechanism": name, "options": options}
        out = self._scratch / "store"
        try:
            settings = replace(self._wanted, **options)
            store = recode_store(self._plain, out, settings, self._statistics)
            report = store_report(out)
            row |= {"bytes_per_token": report["bytes_per_token"], "ratio": report["float32"]["ratio"]}
            return row | {"flipped_bits": flipped_share(self._plain, store)} | self._cosines(store)
        except ValueError as error:
            return row | {"unreachable": str(error)}
        finally:
            for directory in (out, self._scratch / "store.merged"):
                shutil.rmtree(directory, ignore_errors=True)

    def _cosines(self, store: Store) -> dict[str, float]:
        found: dict[str, list[Tensor]] = {"cosine_to_bits": [], "cosine_to_floats": []}
        for states, bits, floats in zip(self._final_states(store), self._on_bits, self._on_floats, strict=True):
            found["cosine_to_bits"].append(F.cosine_similarity(states, bits, dim=-1))
            found["cosine_to_floats"].append(F.cosine_similarity(states, floats, dim=-1))
        return {name: float(torch.cat(values).double().mean()) for name, values in found.items()}

    def _final_states(self, store: Store) -> Iterator[Tensor]:
        """Float32 `(original tokens, d)` of every sampled passage: each token has the state of the one it went into."""
        for batch in chunks(self._sample, _BATCH):
            fetched = store.fetch([[passage_id] for passage_id in batch])
            for states, passage_id in zip(
                _passage_states(self._engine, fetched, self._question), batch, strict=True
            ):  # fmt: skip
                slots = store.passage(passage_id).slots
                yield states if slots is None else states[slots]


def _final_states_of_floats(
    engine: ReaderEngine, encoder: PassageEncoder, passages: Sequence[Passage], question: QueryBatch
) -> Iterator[Tensor]:
    for batch in chunks(passages, _BATCH):
        with torch.inference_mode():
            _, states, sizes = encoder.states(batch)
        yield from _passage_states(engine, PassageBatch(states[:, None], sizes[:, None]), question)


def _passage_states(engine: ReaderEngine, passages: PassageBatch, question: QueryBatch) -> Iterator[Tensor]:
    """Final encoder states of the passages' tokens, float32 `(tokens, d)` of each; every passage is asked alone."""
    count, width = passages.sizes.shape[0], question.ids.shape[1]
    asked = QueryBatch(question.ids.expand(count, width), question.sizes.expand(count, width))
    memory = engine.encode(asked, passages)
    lengths = (passages.sizes[:, 0] > 0).sum(1).tolist()
    for row, length in enumerate(lengths):
        yield memory.states[row, width : width + length].float().cpu()
