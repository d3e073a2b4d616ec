"""Rows of the projections and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .... import matmul, reference
from ...case import Target
from .row import (
    CUBLAS,
    CUBLAS_FLOAT,
    CUBLAS_FP8,
    CUBLAS_INT8,
    UNPACK_CUBLAS,
    Inputs,
    Row,
    Run,
    normal,
    random_bits,
)

_ARITHMETIC = {"int8": "int8", "fp8": "float8_e4m3fn"}


def project(precision: str, dtype: torch.dtype, m: int, n: int, d: int, targets: tuple[Target, ...]) -> Row:
    """`unpack_matmul`; precision "plain" is the weight as it is."""
    bytewise = precision in ("int8", "fp8") and m > 16  # fewer tokens are refused

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        bits = random_bits(generator, device, m, d // 8)
        weight = normal(generator, device, n, d, dtype=dtype)
        peer = torch.bfloat16 if dtype != torch.float32 else torch.float32
        used = weight if precision == "plain" else matmul.prepare_weight(weight, precision=precision)
        return Inputs(
            bits=bits,
            weight=weight,
            used=used,
            narrow=reference.signs(bits, d).to(used.data.dtype) if bytewise else None,
            one=torch.ones((), device=device),
            unpacked=reference.signs(bits, d, peer),
            peer_weight=weight.to(peer).t(),
            out=torch.empty(m, n, dtype=dtype, device=device),
            peer_out=torch.empty(m, n, dtype=peer, device=device),
        )

    def eight_bits(i: Inputs) -> Tensor:
        if precision == "int8":
            return torch._int_mm(i.narrow, i.used.data)
        return torch._scaled_mm(i.narrow, i.used.data, i.one, i.one, out_dtype=dtype)

    def unpack_then_matmul(i: Inputs) -> Tensor:
        return torch.matmul(reference.signs(i.bits, d, i.peer_weight.dtype), i.peer_weight, out=i.peer_out)

    float32 = dtype == torch.float32
    peers: dict[str, Run] = {
        CUBLAS_FLOAT if float32 else CUBLAS: lambda i: torch.matmul(i.unpacked, i.peer_weight, out=i.peer_out)
    }
    if precision == "plain":
        peers["torch unpack + cuBLAS float32" if float32 else UNPACK_CUBLAS] = unpack_then_matmul
    if bytewise:
        peers[CUBLAS_INT8 if precision == "int8" else CUBLAS_FP8] = eight_bits
    stored = {"int8": 1, "fp8": 1, "fast": 2}.get(precision, dtype.itemsize)
    # What rounding the result leaves, or the precision if that is worse; `checks` compares more strictly.
    tolerance = {"fast": 1e-3, "int8": 1.5e-2, "fp8": 4e-2}.get(precision, 1e-5 if float32 else 4e-3)
    return Row(
        f"unpack_matmul {precision} {str(dtype)[6:]}, {m} x {d} -> {n}",
        make,
        lambda i: matmul.unpack_matmul(i.bits, i.used, out=i.out),
        lambda i: reference.unpack_matmul(i.bits, i.weight, None, None, None, dtype),
        peers,
        bytes=m * d // 8 + stored * n * d + dtype.itemsize * m * n,
        operations=2 * m * n * d,
        arithmetic=_ARITHMETIC.get(precision, "float32" if float32 and precision == "plain" else "bfloat16"),
        tolerance=tolerance,
        targets=targets,
        needs=89 if precision == "fp8" else 0,
        operators=("unpack_matmul" if precision == "plain" else "unpack_matmul_prepared",),
        kind=str(dtype)[6:] if precision == "plain" else precision,
        size=m * d // 8,
    )


def geglu(precision: str, m: int, n: int, d: int) -> Row:
    """`unpack_geglu` in bfloat16: both projections of T5's feed-forward, GELU and product; precision: see `project`."""
    dtype = torch.bfloat16

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        bits = random_bits(generator, device, m, d // 8)
        # Of the size that makes projections of size 1, where GELU is neither 0 nor the identity.
        weight = normal(generator, device, 2 * n, d, dtype=dtype) / d**0.5
        return Inputs(
            bits=bits,
            weight=weight,
            used=weight if precision == "plain" else matmul.prepare_weight(weight, precision=precision),
            unpacked=reference.signs(bits, d, dtype),
            peer_weight=weight.t(),
            products=torch.empty(m, 2 * n, dtype=dtype, device=device),
            out=torch.empty(m, n, dtype=dtype, device=device),
        )

    def unpack_then_geglu(i: Inputs) -> Tensor:
        return reference.geglu(torch.matmul(reference.signs(i.bits, d, dtype), i.peer_weight, out=i.products))

    return Row(
        f"unpack_geglu {precision} bfloat16, {m} x {d} -> 2 x {n}",
        make,
        lambda i: matmul.unpack_geglu(i.bits, i.used, out=i.out),
        lambda i: reference.unpack_geglu(i.bits, i.weight, None, None, None, dtype),
        {
            f"{CUBLAS}, GELU": lambda i: reference.geglu(torch.matmul(i.unpacked, i.peer_weight, out=i.products)),
            f"{UNPACK_CUBLAS}, GELU": unpack_then_geglu,
        },
        bytes=m * d // 8 + 2 * n * d * (dtype.itemsize if precision == "plain" else 1) + dtype.itemsize * m * n,
        operations=4 * m * n * d,
        arithmetic=_ARITHMETIC.get(precision, "bfloat16"),
        tolerance=8e-3 if precision == "plain" else 3e-2,
        operators=("unpack_geglu" if precision == "plain" else "unpack_geglu_prepared",),
        kind="bfloat16" if precision == "plain" else precision,
        size=m * d // 8,
    )


def project_gradients(dtype: torch.dtype, m: int, n: int, d: int) -> Row:
    """Gradients of `unpack_matmul` in weight and scale; peers multiply the same matrices and no more."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        bits = random_bits(generator, device, m, d // 8)
        return Inputs(
            grad=normal(generator, device, m, n, dtype=dtype),
            bits=bits,
            weight=normal(generator, device, n, d, dtype=dtype),
            scale=torch.rand(d, generator=generator, device=device),
            unpacked=reference.signs(bits, d, dtype),
        )

    def ours(i: Inputs) -> tuple[Tensor, ...]:
        return torch.ops.btr.unpack_matmul_backward(i.grad, i.bits, i.weight, i.scale, None, True, True)

    return Row(
        f"unpack_matmul gradients {str(dtype)[6:]}, {m} x {d} -> {n}",
        make,
        ours,
        lambda i: reference.unpack_matmul_backward(i.grad, i.bits, i.weight, i.scale, None, True, True),
        {
            CUBLAS: lambda i: i.grad.t() @ i.unpacked,
            UNPACK_CUBLAS: lambda i: i.grad.t() @ reference.signs(i.bits, d, dtype),
        },
        bytes=m * d // 8 + dtype.itemsize * (m * n + 2 * n * d),
        operations=2 * m * n * d,
        tolerance=4e-3,
        operators=("unpack_matmul_backward",),
        kind=str(dtype)[6:],
        size=m * n,
    )
