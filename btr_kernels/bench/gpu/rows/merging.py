"""Rows of matching and merging."""

from __future__ import annotations

import torch
from torch import Tensor

from .... import reference
from ....merging import match_tokens, merge_bits
from ...case import Target
from .row import COMPILED, EAGER, Inputs, Row, Run, normal, random_bits


def matched(passages: int, tokens: int, d: int, kept: int, compiler: bool) -> Row:
    """Matching and the majority vote; the peer starts from signs that are unpacked already and ends with bfloat16.
    Compiling it takes tens of seconds a size, so not every row has it."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        bits = random_bits(generator, device, passages, tokens, d // 8)
        return Inputs(bits=bits, unpacked=reference.signs(bits, d, torch.bfloat16))

    def ours(i: Inputs) -> tuple[Tensor, ...]:
        plan = match_tokens(i.bits, kept)
        return plan.slot, *merge_bits(i.bits, plan)

    def expected(i: Inputs) -> tuple[Tensor, ...]:
        keep = torch.full((passages,), kept, device=i.bits.device)
        slot, _ = reference.match_tokens(i.bits, keep, None, None)
        return slot, *reference.merge_bits(i.bits, slot, None, kept, None, None)

    compiled: list[Run] = []

    def by_compiler(i: Inputs) -> object:
        if not compiled:
            compiled.append(torch.compile(match_and_merge))
        return compiled[0](i.unpacked, kept)

    return Row(
        f"match_tokens + merge_bits, {passages} x {tokens} x {d} bits to {kept}",
        make,
        ours,
        expected,
        {EAGER: lambda i: match_and_merge(i.unpacked, kept), **({COMPILED: by_compiler} if compiler else {})},
        bytes=passages * (2 * tokens + kept) * d // 8,
        operations=2 * passages * (tokens // 2) * (tokens - tokens // 2) * d,
        targets=(Target(10, 20, (EAGER,)), *((Target(4, 8, (COMPILED,)),) if compiler else ())),
        operators=("match_tokens", "merge_bits"),
        size=passages * tokens * d // 8,
    )


def match_and_merge(x: Tensor, kept: int) -> Tensor:
    """One round of bipartite soft matching on +-1 tokens (B, n, d) as a PyTorch user writes it: bmm, max, a sort by
    similarity, index_add."""
    batch, n, d = x.shape
    a, b = x[:, 0::2], x[:, 1::2]
    similarity, best = torch.bmm(a, b.transpose(1, 2)).max(-1)
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    merged = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, order[:, : n - kept], True)
    stays = torch.ones(batch, n, dtype=torch.bool, device=x.device)
    stays[:, 0::2] = ~merged
    position = stays.cumsum(1) - 1
    position[:, 0::2] = torch.where(merged, position.gather(1, 2 * best + 1), position[:, 0::2])
    row = (position + kept * torch.arange(batch, device=x.device)[:, None]).flatten()
    sums = torch.zeros(batch * kept, d, dtype=x.dtype, device=x.device).index_add_(0, row, x.flatten(0, 1))
    return torch.where(sums >= 0, 1.0, -1.0).to(x.dtype).view(batch, kept, d)


def averaged(dtype: torch.dtype, passages: int, tokens: int, d: int) -> Row:
    """`merge_tokens` of pairs: half of the tokens is left."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        slot = torch.rand(passages, tokens, generator=generator, device=device).argsort(-1) // 2
        x = normal(generator, device, passages, tokens, d, dtype=dtype)
        row = slot + tokens // 2 * torch.arange(passages, device=device)[:, None]
        return Inputs(x=x, slot=slot.int(), row=row.flatten())

    def ours(i: Inputs) -> tuple[Tensor, ...]:
        return torch.ops.btr.merge_tokens(i.x, i.slot, None, tokens // 2, None, None)

    def eager(i: Inputs) -> Tensor:
        sums = i.x.new_zeros(passages * tokens // 2, d)
        return sums.index_add_(0, i.row, i.x.view(-1, d)) / 2

    return Row(
        f"merge_tokens {str(dtype)[6:]}, {passages} x {tokens} x {d} to {tokens // 2}",
        make,
        ours,
        lambda i: reference.merge_tokens(i.x, i.slot, None, tokens // 2, None, None),
        {EAGER: eager},
        bytes=passages * (3 * tokens // 2 * d * dtype.itemsize + 4 * tokens),
        tolerance=4e-3,
        operators=("merge_tokens",),
        kind=str(dtype)[6:],
        size=passages * tokens * d,
    )
