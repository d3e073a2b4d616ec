"""Rows of matching and merging tokens."""

from __future__ import annotations

import math

import torch

from ... import MergePlan, match_tokens, merge_bits, merge_tokens, reference
from .. import peers
from ..case import Case, Inputs, Target, Traffic
from .common import BASE, F32, LARGE, ROUNDING, Generator, codes, normal, title

BMM, INDEX_ADD = "torch.bmm of signs + max", "torch.index_add of signs"


def match(batch: int, n: int, d: int = BASE, keep: float = 0.5, quick: bool = False) -> Case:
    half = n // 2

    def make(g: Generator) -> Inputs:
        bits = codes(g, batch, n, d // 8)
        signs = reference.signs(bits, d)
        return Inputs(
            bits=bits,
            kept=torch.full((batch,), math.ceil(keep * n)),
            even=signs[:, 0::2].contiguous(),
            odd=signs[:, 1::2].contiguous(),
            scores=torch.zeros(batch, n - half, half),
            best_score=torch.zeros(batch, n - half),
            best=torch.zeros(batch, n - half, dtype=torch.int64),
        )

    return Case(
        title("match_tokens", f"keep={keep}", f"{batch}x{n}x{d}"),
        "match_tokens",
        make,
        ours=lambda i: match_tokens(i.bits, keep),
        baseline=lambda i: reference.match_tokens(i.bits, i.kept, None, None),
        peers={BMM: peers.bmm_and_max},
        bytes=Traffic(batch * n * d // 8, batch * (n + 1) * torch.int32.itemsize),
        operations=2 * batch * (n - half) * half * d,
        limit="read",
        targets=(Target(12, 20, (BMM,)) if n >= 512 else Target(9, 15, (BMM,)),),
        quick=quick,
    )


def _plan(g: Generator, batch: int, n: int, d: int, keep: float) -> tuple[torch.Tensor, MergePlan, dict]:
    """Bits, a plan over them, and what the peers need of it."""
    bits, rows = codes(g, batch, n, d // 8), math.ceil(keep * n)
    plan = MergePlan(*reference.match_tokens(bits, torch.full((batch,), rows), None, None), rows)
    # index_add is faster on int64 than on int32.
    row = (plan.slot + rows * torch.arange(batch)[:, None]).flatten()
    counts = torch.bincount(row, minlength=batch * rows)
    of_peers = {"row": row, "order": row.argsort(stable=True), "start": counts.cumsum(0) - counts}
    return bits, plan, {**of_peers, "sizes": counts[:, None].float()}


def merge_majority(batch: int, n: int, d: int = BASE, keep: float = 0.5, quick: bool = False) -> Case:
    kept = math.ceil(keep * n)

    def make(g: Generator) -> Inputs:
        bits, plan, of_peers = _plan(g, batch, n, d, keep)
        x = reference.signs(bits, d).flatten(0, 1)
        return Inputs(bits=bits, plan=plan, x=x, sums=torch.zeros(batch * kept, d), **of_peers)

    return Case(
        title("merge_bits", f"keep={keep}", f"{batch}x{n}x{d}"),
        "merge_bits",
        make,
        ours=lambda i: merge_bits(i.bits, i.plan),
        baseline=lambda i: reference.merge_bits(i.bits, i.plan.slot, None, kept, None, None),
        peers={INDEX_ADD: peers.index_add_signs, "torch embedding_bag of signs": peers.bag_of_signs},
        bytes=Traffic(batch * n * (d // 8 + torch.int32.itemsize), batch * kept * (d // 8 + torch.int32.itemsize)),
        operations=batch * n * d,
        limit="read",
        targets=(Target(40, 100, (INDEX_ADD,)),),
        quick=quick,
    )


def merge_mean(batch: int, n: int, d: int = BASE, keep: float = 0.5, quick: bool = False) -> Case:
    kept = math.ceil(keep * n)

    def make(g: Generator) -> Inputs:
        _, plan, of_peers = _plan(g, batch, n, d, keep)
        return Inputs(x=normal(g, batch, n, d), plan=plan, sums=torch.zeros(batch * kept, d), **of_peers)

    return Case(
        title("merge_tokens", f"keep={keep}", f"{batch}x{n}x{d}"),
        "merge_tokens",
        make,
        ours=lambda i: merge_tokens(i.x, i.plan),
        baseline=lambda i: reference.merge_tokens(i.x, i.plan.slot, None, kept, None, None),
        peers={"torch.index_add": peers.index_add_mean, "torch embedding_bag": peers.bag_of_means},
        bytes=Traffic(batch * n * (d + 1) * F32.itemsize, batch * kept * (d + 1) * F32.itemsize),
        operations=2 * batch * n * d,
        limit="copy",
        tolerance=ROUNDING,
        quick=quick,
    )


CASES: tuple[Case, ...] = (
    match(10, 128, quick=True),
    *(match(40, n, quick=n == 200) for n in (128, 200, 256, 512)),
    match(40, 200, LARGE),
    merge_majority(10, 128, quick=True),
    merge_majority(40, 200),
    merge_mean(10, 128, quick=True),
    merge_mean(40, 200),
)
