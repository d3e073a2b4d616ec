"""Exact search of `btr_reader.retrieval` against faiss: 200,000 random vectors of 384 channels, the 100 best.

    python benchmarks/retrieval_search.py [--vectors 200000] [--channels 384] [--rounds 7]

Medians of alternating rounds; the ratio is the median over rounds of faiss' time over ours.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from btr_kernels import pack_bits
from btr_reader.passages import Passage
from btr_reader.retrieval import BinaryRetriever, DenseRetriever

#: Shards that the vectors of an index of this size come in.
PARTS, BEST = 50, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((arguments.vectors, arguments.channels), dtype=np.float32)
    corpus = [Passage(str(number), "", "x") for number in range(len(vectors))]
    parts, bits = np.array_split(vectors, PARTS), pack_bits(torch.from_numpy(vectors))
    pairs = {
        "dense": [DenseRetriever(corpus, parts, faiss=faiss) for faiss in (None, "Flat")],
        "binary, rerank 0": [
            BinaryRetriever(corpus, bits, arguments.channels, rerank=0, faiss=faiss) for faiss in (None, "BFlat")
        ],
    }
    print("| index | questions at once | ours | faiss | ratio |\n| --- | --: | --: | --: | --: |")
    for name, pair in pairs.items():
        for count in (1, 64):
            questions = generator.standard_normal((count, arguments.channels), dtype=np.float32)
            seconds: list[list[float]] = [[], []]
            for _ in range(arguments.rounds):
                for retriever, times in zip(pair, seconds, strict=True):
                    start = time.perf_counter()
                    retriever.rank(questions, BEST)
                    times.append(time.perf_counter() - start)
            ours, faiss = map(np.median, seconds)
            ratio = np.median(np.array(seconds[1]) / np.array(seconds[0]))
            print(f"| {name} | {count} | {1e3 * ours:.1f} ms | {1e3 * faiss:.1f} ms | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
