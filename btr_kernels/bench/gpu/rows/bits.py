"""Rows of packing, unpacking, restoring, binarization and masked bits."""

from __future__ import annotations

import torch
from torch import Tensor

from .... import reference
from ....bits import binarize, compress_bits, expand_bits, pack_bits, restore_bits, unpack_bits
from ...case import Target
from .row import EAGER, Inputs, Row, normal, random_bits

#: Of the copy bandwidth.
_STREAMING = (Target(0.85, 0.95),)


def pack(dtype: torch.dtype, m: int, d: int) -> Row:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        out = torch.empty(m, d // 8, dtype=torch.uint8, device=device)
        return Inputs(x=normal(generator, device, m, d, dtype=dtype), out=out)

    return Row(
        f"pack_bits {str(dtype)[6:]}, {m} x {d}",
        make,
        lambda i: pack_bits(i.x, out=i.out),
        lambda i: reference.pack_bits(i.x),
        {EAGER: lambda i: reference.pack_bits(i.x)},
        bytes=m * d * dtype.itemsize + m * d // 8,
        targets=_STREAMING,
        operators=("pack_bits",),
        kind=str(dtype)[6:],
        size=m * d,
    )


def unpack(dtype: torch.dtype, m: int, d: int) -> Row:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        scale = torch.rand(d, generator=generator, device=device)
        return Inputs(
            bits=random_bits(generator, device, m, d // 8),
            scale=scale,
            out=torch.empty(m, d, dtype=dtype, device=device),
        )

    def eager(i: Inputs) -> Tensor:
        return reference.unpack_bits(i.bits, d, i.scale, None, None, dtype)

    return Row(
        f"unpack_bits {str(dtype)[6:]} with scale, {m} x {d}",
        make,
        lambda i: unpack_bits(i.bits, d, i.scale, dtype=dtype, out=i.out),
        eager,
        {EAGER: eager},
        bytes=m * d * dtype.itemsize + m * d // 8,
        tolerance=1e-7,
        targets=_STREAMING,
        operators=("unpack_bits",),
        kind=str(dtype)[6:],
        size=m * d // 8,
    )


def restored(dtype: torch.dtype, m: int, d: int) -> Row:
    """`restore_bits` from pinned host memory; the peer copies and then unpacks. The limit is that of writing: the bus,
    which is slower, is not measured."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        bits = random_bits(generator, device, m, d // 8).cpu()
        return Inputs(
            bits=bits.pin_memory() if device.type == "cuda" else bits,
            scale=torch.rand(d, generator=generator, device=device),
            copy=torch.empty(m, d // 8, dtype=torch.uint8, device=device),
        )

    def copy_then_unpack(i: Inputs) -> tuple[Tensor, Tensor]:
        i.copy.copy_(i.bits, non_blocking=True)
        return i.copy, reference.unpack_bits(i.copy, d, i.scale, None, None, dtype)

    return Row(
        f"restore_bits {str(dtype)[6:]} from host memory, {m} x {d}",
        make,
        lambda i: restore_bits(i.bits, i.scale, dtype=dtype),
        copy_then_unpack,
        {EAGER: copy_then_unpack},
        bytes=m * d * dtype.itemsize + m * d // 8,
        tolerance=1e-7,
        operators=("restore_bits",),
        kind=str(dtype)[6:],
        size=m * d // 8,
    )


def normalised(norm: str, dtype: torch.dtype, m: int, d: int) -> Row:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        return Inputs(x=normal(generator, device, m, d, dtype=dtype))

    def eager(i: Inputs) -> tuple[Tensor, Tensor]:
        return reference.binarize(i.x, norm, 1e-6, True)

    return Row(
        f"binarize {norm} {str(dtype)[6:]} with magnitude, {m} x {d}",
        make,
        lambda i: binarize(i.x, norm, return_magnitude=True),
        eager,
        {EAGER: eager},
        bytes=m * d * dtype.itemsize + m * d // 8 + 4 * m,
        tolerance=1e-5,  # values at the mean may go either way
        targets=_STREAMING,
        operators=("binarize",),
        kind=str(dtype)[6:],
        size=m * d,
    )


def masked(operator: str, m: int, d: int, k: int, vocabulary: int = 32128) -> Row:
    """`compress_bits` or `expand_bits` of tokens of any ids, each of which needs its own rows of the tables."""
    w, c = d // 8, k // 8

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        order = torch.rand(vocabulary, d, generator=generator, device=device).argsort(-1)
        return Inputs(
            bits=random_bits(generator, device, m, w),
            codes=random_bits(generator, device, m, c),
            ids=torch.randint(vocabulary, (m,), generator=generator, device=device),
            mask=reference.pack_bits(order < k),
            fill=random_bits(generator, device, vocabulary, w),
            out=torch.empty(m, c if operator == "compress_bits" else w, dtype=torch.uint8, device=device),
        )

    if operator == "compress_bits":

        def ours(i: Inputs) -> Tensor:
            return compress_bits(i.bits, i.ids, i.mask, k, out=i.out)

        def eager(i: Inputs) -> Tensor:
            return reference.compress_bits(i.bits, i.ids, i.mask, k)

    else:

        def ours(i: Inputs) -> Tensor:
            return expand_bits(i.codes, i.ids, i.mask, i.fill, out=i.out)

        def eager(i: Inputs) -> Tensor:
            return reference.expand_bits(i.codes, i.ids, i.mask, i.fill)

    compresses = operator == "compress_bits"
    return Row(
        f"{operator} {k} of {d} bits, {m} tokens",
        make,
        ours,
        eager,
        {EAGER: eager},
        bytes=m * (8 + c + (2 if compresses else 3) * w),
        operators=(operator,),
        size=m * (w if compresses else c),
    )
