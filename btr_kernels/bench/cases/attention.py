"""Rows of the attention of a decoder's step: to the tokens that passages leave, and to those decoded so far."""

from __future__ import annotations

from ... import reference, token_attention
from .. import peers
from ..case import Case, Inputs, Traffic
from .common import BASE, F32, LARGE, ROUNDING, Generator, normal, title

_HEAD = 64


def attention(count: int, inner: int, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        return Inputs(
            query=normal(g, 1, 1, inner) / _HEAD**0.5,
            keys=normal(g, 1, count, inner),
            values=normal(g, 1, count, inner),
            bias=normal(g, 1, 1, 1, count),
            head_size=_HEAD,
        )

    return Case(
        title("token_attention", "", f"S={count} {inner}"),
        "token_attention",
        make,
        ours=lambda i: token_attention(i.query, i.keys, i.values, i.bias, head_size=_HEAD),
        baseline=lambda i: reference.token_attention(i.query, i.keys, i.values, i.bias, _HEAD),
        peers={"torch scaled_dot_product_attention": peers.fused_attention},
        bytes=Traffic(2 * count * inner * F32.itemsize, inner * F32.itemsize),
        operations=4 * count * inner,
        limit="read",
        tolerance=10 * ROUNDING,
        quick=quick,
    )


CASES: tuple[Case, ...] = (
    attention(8, BASE),
    *(attention(count, BASE, quick=count == 370) for count in (370, 1480)),
    *(attention(count, LARGE) for count in (340, 1480)),
)
