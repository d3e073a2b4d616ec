"""Rows of the projections, of packed tokens and of few float tokens, and of preparing a weight.

The peers of the targets are float32 matmuls, PyTorch's and NumPy's, on tokens that are already unpacked and scaled;
8-bit and bfloat16 weights are also compared with a matmul in bfloat16, where the CPU has instructions for it. A
prepared weight is made outside of the measurement; what that costs are rows of their own.
"""

from __future__ import annotations

from typing import Literal

import torch

from ... import prepare_weight, reference, token_linear, unpack_geglu, unpack_matmul
from .. import peers
from ..case import Case, Inputs, Target, Traffic
from .common import BASE, BF16, F16, F32, LARGE, ROUNDING, Generator, codes, dtype_name, normal, scale, title

Form = Literal["plain", "exact", "fast", "int8"]

#: What `prepare_weight` promises for each precision, and what rounding a result to 16 bits adds.
TOLERANCE = {"plain": ROUNDING, "exact": ROUNDING, "fast": 1e-3, "int8": 1.2e-2}
ROUNDING_OF = {F32: 0.0, F16: 1e-3, BF16: 8e-3}

UNPACKED, NUMPY, ONEDNN = "torch.matmul, unpacked", "numpy.matmul, unpacked", "oneDNN linear, unpacked"
BFLOAT16 = "torch.matmul, unpacked bfloat16"
#: Bytes a weight of the prepared forms that do not keep its dtype.
BYTES = {"fast": 2, "int8": 1}


def _targets(m: int, form: Form, dtype: torch.dtype) -> tuple[Target, ...]:
    if dtype != F32:
        return ()
    if form == "exact":
        value = (1.5, 2.5) if m == 1 else (2.4, 3.0) if 64 <= m <= 512 else (3.2, 4.0) if m >= 2048 else None
    elif form == "fast":
        value = (4.5, 6.0) if 64 <= m <= 512 else (5.5, 7.0) if m >= 4096 else None
    else:
        value = None
    return (Target(*value, (UNPACKED, NUMPY, ONEDNN)),) if value else ()


def matmul(
    m: int,
    n: int,
    d: int,
    form: Form,
    dtype: torch.dtype = F32,
    fresh_tokens: bool = False,
    quick: bool = False,
) -> Case:
    """`form`: "plain" (the weight as it is, with a scale), or the precision of a prepared weight.

    `fresh_tokens`: the weight and the output stay in cache, the tokens of every call are new. Otherwise the weight
    is new too, read from main memory.
    """

    in_bfloat16 = form == "int8" or dtype == BF16

    def tokens(g: Generator, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        bits = codes(g, m, d // 8)
        x = reference.signs(bits, d).mul_(factors)
        return {"bits": bits, "x": x, **({"x_bfloat16": x.bfloat16()} if in_bfloat16 else {})}

    def make(g: Generator) -> Inputs:
        weight, factors = normal(g, n, d, dtype=dtype), scale(g, d)
        halves = {"weight_bfloat16": weight.bfloat16(), "out_bfloat16": torch.zeros(m, n, dtype=BF16)}
        return Inputs(
            **tokens(g, factors),
            **(halves if in_bfloat16 else {}),
            weight=weight,
            weight_float32=weight.float(),
            scale=factors,
            prepared=None if form == "plain" else prepare_weight(weight, factors, form),
            out=torch.zeros(m, n, dtype=dtype),
            out_float32=torch.zeros(m, n),
        )

    def ours(i: Inputs) -> torch.Tensor:
        if i.prepared is None:
            return unpack_matmul(i.bits, i.weight, i.scale, out=i.out)
        return unpack_matmul(i.bits, i.prepared, out=i.out)

    def baseline(i: Inputs) -> torch.Tensor:
        x = reference.unpack_bits(i.bits, d, i.scale, None, None, F32)
        return torch.matmul(x, i.weight.float().t()).to(dtype)

    what = form if dtype == F32 else f"{form} {dtype_name(dtype)}"
    size = f"M={m} {d}->{n}" + (" fresh tokens, weight in cache" if fresh_tokens else "")
    weight_bytes = n * d * BYTES.get(form, dtype.itemsize)
    return Case(
        title("unpack_matmul", what, size),
        "unpack_matmul",
        make,
        ours=ours,
        baseline=baseline,
        peers={
            UNPACKED: peers.unpacked_matmul,
            NUMPY: peers.numpy_matmul,
            ONEDNN: peers.onednn_matmul,
            **({BFLOAT16: peers.bfloat16_matmul} if in_bfloat16 else {}),
        },
        bytes=Traffic(m * d // 8 + weight_bytes, m * n * dtype.itemsize),
        operations=2 * m * n * d,
        limit="write" if m * n > n * d else "read",
        tolerance=TOLERANCE[form] + ROUNDING_OF[dtype],
        in_cache=fresh_tokens,
        fresh=(lambda first, g: Inputs(**{**vars(first), **tokens(g, first.scale)})) if fresh_tokens else None,
        targets=_targets(m, form, dtype),
        quick=quick,
    )


def geglu(m: int, n: int, d: int, precision: Form, quick: bool = False) -> Case:
    """The feed-forward of the cut layer up to its last projection; the weights in memory, as everything is."""

    def make(g: Generator) -> Inputs:
        bits, factors = codes(g, m, d // 8), scale(g, d)
        # Of the size that makes projections of size 1, where GELU is neither 0 nor the identity.
        gate, linear = normal(g, n, d) / d**0.5, normal(g, n, d) / d**0.5
        return Inputs(
            bits=bits,
            x=reference.signs(bits, d).mul_(factors),
            scale=factors,
            gate=gate,
            linear=linear,
            prepared=prepare_weight(torch.cat([gate, linear]), factors, precision),
            gate_weight=prepare_weight(gate, factors, precision),
            linear_weight=prepare_weight(linear, factors, precision),
            out=torch.zeros(m, n),
            gate_out=torch.zeros(m, n),
            linear_out=torch.zeros(m, n),
        )

    return Case(
        title("unpack_geglu", precision, f"M={m} {d}->2x{n}"),
        "unpack_geglu",
        make,
        ours=lambda i: unpack_geglu(i.bits, i.prepared, out=i.out),
        baseline=lambda i: reference.geglu(
            torch.matmul(reference.unpack_bits(i.bits, d, i.scale, None, None, F32), torch.cat([i.gate, i.linear]).t())
        ),
        peers={
            "two torch.matmul, unpacked, GELU": peers.unpacked_geglu,
            "two oneDNN linears, unpacked, GELU": peers.onednn_geglu,
            "two unpack_matmul, GELU": peers.separate_geglu,
        },
        bytes=Traffic(m * d // 8 + 2 * n * d * BYTES.get(precision, F32.itemsize), m * n * F32.itemsize),
        operations=4 * m * n * d,
        limit="write" if m > 2 * d else "read",
        tolerance=2 * TOLERANCE[precision],
        quick=quick,
    )


def linear(m: int, n: int, d: int, gated: bool = False, quick: bool = False) -> Case:
    """A projection of a decoder's step, with the norm before it and the gate or the residual behind."""
    columns = n // 2 if gated else n

    def make(g: Generator) -> Inputs:
        return Inputs(
            x=normal(g, m, d),
            weight=normal(g, n, d) / d**0.5,
            norm=scale(g, d),
            eps=1e-6,
            residual=None if gated else normal(g, m, columns),
            gated=gated,
            products=torch.zeros(m, n),
            out=torch.zeros(m, columns),
        )

    return Case(
        title("token_linear", "geglu" if gated else "residual", f"M={m} {d}->{'2x' if gated else ''}{columns}"),
        "token_linear",
        make,
        ours=lambda i: token_linear(
            i.x, i.weight, norm=i.norm, eps=i.eps, residual=i.residual, gated=i.gated, out=i.out
        ),
        baseline=lambda i: reference.token_linear(i.x, i.weight, i.norm, i.eps, i.residual, i.gated),
        peers={
            "torch.matmul and the operators around": peers.matmul_in_block,
            "oneDNN linear and the operators around": peers.onednn_in_block,
        },
        bytes=Traffic(n * d * F32.itemsize, m * columns * F32.itemsize),
        operations=2 * m * n * d,
        limit="read",
        tolerance=2 * ROUNDING,
        quick=quick,
    )


def prepare(n: int, d: int, precision: str, quick: bool = False) -> Case:
    """What making a prepared weight costs, against folding the scale in alone."""

    def make(g: Generator) -> Inputs:
        return Inputs(weight=normal(g, n, d), scale=scale(g, d), out=torch.zeros(n, d))

    def ours(i: Inputs) -> None:
        """No result to compare: the layout is private, and the rows of `unpack_matmul` check what it gives."""
        prepare_weight(i.weight, i.scale, precision)

    def baseline(i: Inputs) -> None:
        torch.mul(i.weight, i.scale, out=i.out)

    weight_bytes = n * d * F32.itemsize
    return Case(
        title("prepare_weight", precision, f"{d}->{n}"),
        "prepare_weight",
        make,
        ours=ours,
        baseline=baseline,
        peers={},
        bytes=Traffic(weight_bytes, weight_bytes // (4 if precision == "int8" else 1)),
        operations=n * d,
        limit="copy",
        quick=quick,
    )


BASE_SHAPES, LARGE_SHAPES = ((768, BASE), (2048, BASE)), ((1024, LARGE), (2816, LARGE))

CASES: tuple[Case, ...] = (
    *(
        matmul(1, n, d, "exact", fresh_tokens=fresh, quick=n == 768)
        for n, d in (*BASE_SHAPES, *LARGE_SHAPES)
        for fresh in (True, False)
    ),
    *(
        matmul(m, n, d, "exact", quick=(m, n) in ((64, 768), (2048, 768)))
        for n, d in BASE_SHAPES
        for m in (64, 512, 1280, 2048, 4096, 8192)
    ),
    *(matmul(m, n, d, "exact", quick=(m, n) == (512, 1024)) for n, d in LARGE_SHAPES for m in (64, 512, 4096)),
    *(
        matmul(m, n, d, "fast", quick=(m, n) in ((512, 768), (4096, 768)))
        for n, d in BASE_SHAPES
        for m in (64, 512, 4096, 8192)
    ),
    *(matmul(m, n, d, "fast") for n, d in LARGE_SHAPES for m in (512, 4096)),
    *(matmul(m, 2048, BASE, "int8", quick=m == 64) for m in (1, 64, 512, 4096)),
    *(matmul(m, 2048, BASE, "exact", dtype) for dtype in (F16, BF16) for m in (1, 512)),
    *(matmul(m, 768, BASE, "plain", quick=m == 512) for m in (1, 64, 512)),
    *(
        geglu(m, n, d, precision, quick=m == 64)
        for n, d in ((2048, BASE), (2816, LARGE))
        for m, precision in ((64, "exact"), (1280, "exact"), (1280, "fast"))
    ),
    *(linear(m, 768, BASE, quick=m == 1) for m in (1, 4, 8)),
    *(linear(m, 2 * 2048, BASE, gated=True, quick=m == 1) for m in (1, 8)),
    *(linear(1, n, d) for n, d in ((32128, BASE), (1024, LARGE))),
    linear(1, 2 * 2816, LARGE, gated=True),
    *(prepare(2048, BASE, precision, quick=precision == "exact") for precision in ("exact", "fast", "int8")),
)
