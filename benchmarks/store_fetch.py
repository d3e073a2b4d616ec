"""How long `Store.fetch` takes: 40 passages of 200 tokens out of a store of 2,000, from a warm page cache.

    python benchmarks/store_fetch.py [--channels 768] [--fetches 1000]

Bits and token ids are random: what a fetch costs depends on sizes alone. Every fetch is of other passages, from all
shards; the whole store was read before. Wall time, and CPU time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.numpy import save as serialise

from btr_reader.files import write_file
from btr_reader.settings import ReaderSettings
from btr_reader.store import CodebookFiles, EncodedPassage, Store, StoreSettings, StoreWriter, TokenTables

PASSAGES, SHARD_PASSAGES, READ, LENGTH, VOCABULARY = 2000, 256, 40, 200, 32128
# Vectors of every token id in the codebook.
VECTORS = 16
STORES = {
    "bits": {},
    "bits, half the tokens": {"keep": 0.5},
    "a quarter of the bits": {"masked_bits": 192},
    "half the tokens, half the bits": {"keep": 0.5, "masked_bits": 384, "original_ids": False},
    "codebook": {"codebook_bytes": 30.4},
    "codebook, half the tokens": {"keep": 0.5, "codebook_bytes": 30.4},
    "float16": {"kind": "float16"},
}


def make_store(out: Path, channels: int, changes: dict) -> Store:
    defaults = {"kind": "binary", "keep": 1.0, "masked_bits": 0, "codebook_bytes": 0.0, "original_ids": True}
    settings = StoreSettings(
        reader="", corpus="", vocabulary=VOCABULARY, channels=channels, cut=ReaderSettings(9), same_id_first=False,
        passage_length=LENGTH, shard_passages=SHARD_PASSAGES, **{**defaults, **changes},
    )  # fmt: skip
    random = np.random.default_rng(0)
    kept = int(LENGTH * settings.keep)
    slots = None if settings.keep == 1 else torch.arange(LENGTH) % kept
    tables = random_tables(random, channels, settings.masked_bits) if settings.masked_bits else None
    with StoreWriter(out, settings, tables=tables) as writer:
        if settings.codebook_bytes:
            writer.set_codebook(random_codebook(random, out, settings.row_width))
        for start in range(0, PASSAGES, SHARD_PASSAGES):
            count = min(SHARD_PASSAGES, PASSAGES - start)
            if settings.kind == "binary":
                states = random.integers(0, 256, (count, kept, settings.row_width), dtype=np.uint8)
            else:
                states = random.standard_normal((count, kept, channels), dtype=np.float32)
            ids = random.integers(0, VOCABULARY, (count, LENGTH))
            writer.add_shard(
                [
                    EncodedPassage(f"passage-{start + i}", torch.from_numpy(states[i]), ids[i].tolist(), slots)
                    for i in range(count)
                ]
            )
        writer.finish()
    return Store(out)


def random_tables(random: np.random.Generator, channels: int, stored_bits: int) -> TokenTables:
    places = random.random((VOCABULARY, channels)).argsort(1)
    mask = np.packbits(places < stored_bits, axis=1, bitorder="little")
    return TokenTables(mask, random.integers(0, 256, mask.shape, dtype=np.uint8), stored_bits)


def random_codebook(random: np.random.Generator, out: Path, width: int) -> CodebookFiles:
    counts = np.full(VOCABULARY, VECTORS, np.int32)
    vectors = random.integers(0, 256, (VOCABULARY * VECTORS, width), dtype=np.uint8)
    entry = write_file(out, "codebook-00000.safetensors", serialise({"counts": counts, "vectors": vectors}))
    return CodebookFiles(1, (entry,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--fetches", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("median", "p90", "p99", "max")
    print(f"{'store':<34}" + "".join(f"{kind} {name}".rjust(12) for kind in ("ms", "CPU") for name in columns))
    for name, changes in STORES.items():
        with TemporaryDirectory() as scratch:
            store = make_store(Path(scratch) / "store", arguments.channels, changes)
            ids = store.passage_ids()
            for start in range(0, PASSAGES, READ):
                store.fetch([ids[start : start + READ]])
            random, wall, cpu = np.random.default_rng(1), [], []
            for _ in range(arguments.fetches):
                wanted = [ids[i] for i in random.choice(PASSAGES, READ, replace=False)]
                begin, cpu_begin = time.perf_counter(), time.process_time()
                store.fetch([wanted])
                wall.append(time.perf_counter() - begin)
                cpu.append(time.process_time() - cpu_begin)
            figures = [1000 * figure for times in (wall, cpu) for figure in np.percentile(times, [50, 90, 99, 100])]
            print(f"{name:<34}" + "".join(f"{figure:12.3f}" for figure in figures))


if __name__ == "__main__":
    main()
