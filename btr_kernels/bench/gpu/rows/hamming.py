"""Rows of Hamming distances."""

from __future__ import annotations

import torch

from .... import hamming, reference
from .row import CUBLAS, EAGER, Inputs, Row, random_bits


def distances(m: int, n: int, d: int) -> Row:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        a, b = random_bits(generator, device, m, d // 8), random_bits(generator, device, n, d // 8)
        out = torch.empty(m, n, dtype=torch.int32, device=device)
        signs = [reference.signs(t, d, torch.bfloat16) for t in (a, b)]
        return Inputs(a=a, b=b, out=out, signs_a=signs[0], signs_b=signs[1].t())

    return Row(
        f"hamming_distance, {m} x {n} x {d} bits",
        make,
        lambda i: hamming.hamming_distance(i.a, i.b, out=i.out),
        lambda i: reference.hamming_distance(i.a, i.b),
        {CUBLAS: lambda i: i.signs_a @ i.signs_b},
        bytes=(m + n) * d // 8 + 4 * m * n,
        operations=2 * m * n * d,
        operators=("hamming_distance",),
        size=m * d // 8,
    )


def nearest(m: int, n: int, d: int, k: int) -> Row:
    """`hamming_topk`; the peer takes the nearest of distances that it multiplies from unpacked signs."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        a, b = random_bits(generator, device, m, d // 8), random_bits(generator, device, n, d // 8)
        signs = [reference.signs(t, d, torch.bfloat16) for t in (a, b)]
        return Inputs(a=a, b=b, signs_a=signs[0], signs_b=signs[1].t())

    return Row(
        f"hamming_topk {k} of {n}, {m} x {d} bits",
        make,
        lambda i: tuple(hamming.hamming_topk(i.a, i.b, k)),
        lambda i: reference.hamming_topk(i.a, i.b, k),
        {EAGER: lambda i: (i.signs_a @ i.signs_b).topk(k)},
        bytes=(m + n) * d // 8 + 12 * m * k,
        operations=2 * m * n * d,
        operators=("hamming_topk",),
        size=m * d // 8,
    )
