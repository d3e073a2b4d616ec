"""How fast a decoder step reads its weights: from ordinary memory and huge pages, by oneDNN and by our kernel.

    python benchmarks/decoder_weights.py [--shape base] [--threads 2] [--rounds 15]

The products of a step of T5 v1.1 with a single token, on weights that no cache holds; contenders take turns, and the
medians are printed. Memory is not everywhere equally fast: run it again for other pages.
"""

from __future__ import annotations

import argparse
import statistics
from time import perf_counter

import torch
from torch import Tensor

from btr_kernels import token_linear
from btr_reader.huge_pages import HugePages
from btr_reader.settings import SHAPES


def shapes(name: str) -> list[tuple[int, int]]:
    """(N, d) of the weights of a step: of each layer, and the output head."""
    shape = SHAPES[name]
    d, inner = shape.d_model, shape.heads * shape.head_size
    layer = [(3 * inner, d), (d, inner), (inner, d), (d, inner), (2 * shape.d_ff, d), (d, shape.d_ff)]
    return shape.layers * layer + [(shape.vocabulary, d)]


def onednn(weights: list[Tensor], tokens: dict[int, Tensor]) -> None:
    for weight in weights:
        torch.ops.mkldnn._linear_pointwise(tokens[weight.shape[1]], weight, None, "none", [], "")


def ours(weights: list[Tensor], tokens: dict[int, Tensor]) -> None:
    for weight in weights:
        token_linear(tokens[weight.shape[1]], weight)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plain = [torch.randn(shape) for shape in shapes(arguments.shape)]
    size = sum(weight.nbytes for weight in plain)
    memory = HugePages(size, len(plain))
    huge = [memory.empty(weight.shape).copy_(weight) for weight in plain]
    tokens = {weight.shape[1]: torch.randn(1, weight.shape[1]) for weight in plain}
    contenders = {
        f"{name}, {where}": (run, weights)
        for name, run in (("oneDNN", onednn), ("token_linear", ours))
        for where, weights in (("PyTorch's memory", plain), ("huge pages", huge))
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds + 1):
        for name, (run, weights) in contenders.items():
            start = perf_counter()
            run(weights, tokens)
            times[name].append(perf_counter() - start)
    for name, (_, *seconds) in times.items():  # the first round warms up
        median = statistics.median(seconds)
        print(f"{name:32} {1e3 * median:6.2f} ms a step  {size / median / 1e9:5.1f} GB/s")


if __name__ == "__main__":
    main()
