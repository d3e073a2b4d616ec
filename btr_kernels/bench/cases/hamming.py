"""Rows of Hamming distances and nearest neighbours."""

from __future__ import annotations

import torch

from ... import hamming_distance, hamming_topk, reference
from .. import peers
from ..case import Case, Inputs, Target, Traffic
from .common import BASE, LARGE, Generator, codes, title


def distances(m: int, n: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        a, b = codes(g, m, d // 8), codes(g, n, d // 8)
        return Inputs(
            a=a,
            b=b,
            signs_a=reference.signs(a, d),
            signs_b=reference.signs(b, d),
            products=torch.zeros(m, n),
            out=torch.zeros(m, n, dtype=torch.int32),
            **peers.numkong_buffers(b, m),
        )

    return Case(
        title("hamming_distance", "", f"{m}x{n}x{d}"),
        "hamming_distance",
        make,
        ours=lambda i: hamming_distance(i.a, i.b, out=i.out),
        baseline=lambda i: reference.hamming_distance(i.a, i.b),
        peers={
            "faiss.hammings": peers.faiss_hammings,
            "numkong.hammings_packed": peers.numkong_hammings,
            "torch.mm of signs": peers.unpacked_mm,
        },
        bytes=Traffic((m + n) * d // 8, m * n * torch.int32.itemsize),
        operations=2 * m * n * d,
        limit="write",
        targets=(Target(2, 4, ("faiss.hammings", "numkong.hammings_packed")),),
        quick=quick,
    )


def topk(m: int, n: int, k: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        b = codes(g, n, d // 8)
        return Inputs(
            a=codes(g, m, d // 8),
            b=b,
            k=k,
            index=peers.faiss_index(b),
            values=torch.zeros(m, k, dtype=torch.int32),
            indices=torch.zeros(m, k, dtype=torch.int64),
            **peers.numkong_buffers(b, m),
        )

    return Case(
        title("hamming_topk", f"k={k}", f"{m}x{n}x{d}"),
        "hamming_topk",
        make,
        ours=lambda i: hamming_topk(i.a, i.b, k),
        baseline=lambda i: reference.hamming_topk(i.a, i.b, k),
        peers={
            "faiss.IndexBinaryFlat": peers.faiss_search,
            "numkong.hammings_packed + torch.topk": peers.numkong_search,
        },
        bytes=Traffic((m + n) * d // 8, m * k * (torch.int32.itemsize + torch.int64.itemsize)),
        operations=2 * m * n * d,
        limit="read",
        quick=quick,
    )


CASES: tuple[Case, ...] = (
    distances(2048, 2048, quick=True),
    distances(2048, 2048, LARGE),
    topk(128, 16384, 8, quick=True),
)
