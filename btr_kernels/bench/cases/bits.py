"""Rows of packing, unpacking, binarization and masked bits. All are bound by bandwidth, an in-cache
row by that of its cache."""

from __future__ import annotations

import torch

from ... import binarize, compress_bits, expand_bits, pack_bits, reference, restore_bits, sign_scale, unpack_bits
from .. import peers
from ..case import Case, Inputs, Target, Traffic
from .common import (
    BASE,
    BF16,
    CLAMP,
    EPS,
    F16,
    F32,
    LARGE,
    ROUNDING,
    Generator,
    codes,
    dtype_name,
    normal,
    scale,
    title,
)

#: Larger than cache: a part of the measured bandwidth.
BANDWIDTH = Target(0.85, 0.95)


def pack(dtype: torch.dtype, rows: int, d: int = BASE, in_cache: bool = False, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        return Inputs(
            x=normal(g, rows, d, dtype=dtype),
            out=torch.zeros(rows, d // 8, dtype=torch.uint8),
            mask=torch.zeros(rows, d, dtype=torch.bool),
        )

    others = {"numpy.packbits(torch.ge)": peers.torch_pack}
    if dtype == F32:
        others["numpy.packbits(x >= 0)"] = peers.numpy_pack
        same_meaning = ("numpy.packbits(x >= 0)",)
    else:
        others["numpy.packbits(int16 >= 0)"] = peers.integer_pack
        same_meaning = ("numpy.packbits(torch.ge)",)
    ratio = Target(10, 13, same_meaning) if in_cache else Target(2.5, 3.5, same_meaning)
    return Case(
        title("pack_bits", dtype_name(dtype), f"{rows}x{d}", in_cache),
        "pack_bits",
        make,
        ours=lambda i: pack_bits(i.x, out=i.out),
        baseline=lambda i: reference.pack_bits(i.x),
        peers=others,
        bytes=Traffic(rows * d * dtype.itemsize, rows * d // 8),
        operations=rows * d,
        limit="read",
        in_cache=in_cache,
        targets=(ratio,) if in_cache else (ratio, BANDWIDTH) if dtype == F32 else (BANDWIDTH,),
        quick=quick,
    )


def unpack(dtype: torch.dtype, rows: int, d: int = BASE, in_cache: bool = False, quick: bool = False) -> Case:
    signs_of_byte = reference.signs(torch.arange(256, dtype=torch.uint8)[:, None], 8).to(dtype)

    def make(g: Generator) -> Inputs:
        factors = scale(g, d)
        return Inputs(
            bits=codes(g, rows, d // 8),
            scale=factors,
            scale_of_dtype=factors.to(dtype),
            twice_scale=2 * factors,
            signs_of_byte=signs_of_byte,
            byte=torch.zeros(rows * d // 8, dtype=torch.int32),
            out=torch.zeros(rows, d, dtype=dtype),
        )

    others = {"torch.index_select of bytes": peers.table_unpack, "numpy.take of bytes": peers.take_unpack}
    if dtype == F32:
        others["numpy.unpackbits"] = peers.numpy_unpack
    return Case(
        title("unpack_bits", f"scaled {dtype_name(dtype)}", f"{rows}x{d}", in_cache),
        "unpack_bits",
        make,
        ours=lambda i: unpack_bits(i.bits, d, i.scale, dtype=dtype, out=i.out),
        baseline=lambda i: reference.unpack_bits(i.bits, d, i.scale, None, None, dtype),
        peers=others,
        bytes=Traffic(rows * d // 8, rows * d * dtype.itemsize),
        operations=rows * d,
        limit="write",
        in_cache=in_cache,
        targets=(Target(5, 8, tuple(others)),) if in_cache else (BANDWIDTH,),
        quick=quick,
    )


def restore(rows: int, d: int = BASE, quick: bool = False) -> Case:
    """On one device a copy and an unpacking: what the operator saves is between host and GPU."""
    signs_of_byte = reference.signs(torch.arange(256, dtype=torch.uint8)[:, None], 8)

    def make(g: Generator) -> Inputs:
        factors = scale(g, d)
        return Inputs(
            bits=codes(g, rows, d // 8),
            scale=factors,
            scale_of_dtype=factors,
            signs_of_byte=signs_of_byte,
            copy=torch.zeros(rows, d // 8, dtype=torch.uint8),
            out=torch.zeros(rows, d),
        )

    return Case(
        title("restore_bits", "float32", f"{rows}x{d}"),
        "restore_bits",
        make,
        ours=lambda i: restore_bits(i.bits, i.scale),
        baseline=lambda i: (i.bits.clone(), reference.unpack_bits(i.bits, d, i.scale, None, None, F32)),
        peers={"copy, numpy.take of bytes": peers.copy_and_take},
        bytes=Traffic(rows * d // 8, rows * (d // 8 + d * F32.itemsize)),
        operations=rows * d,
        limit="write",
        quick=quick,
    )


def binarize_norm(norm: str, rows: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        # Off-centre, so that a layer norm that forgot the mean is noticed.
        x = normal(g, rows, d).add_(0.1)
        return Inputs(x=x, mask=torch.zeros(rows, d, dtype=torch.bool), eps=EPS)

    peer = {
        "rms": {"packbits(torch.ge) + vector_norm": peers.pack_with_rms},
        "layer": {"native_layer_norm + packbits": peers.layer_norm_pack},
    }[norm]
    return Case(
        title("binarize", f"{norm} with magnitude", f"{rows}x{d}"),
        "binarize",
        make,
        ours=lambda i: binarize(i.x, norm, EPS, return_magnitude=True),
        baseline=lambda i: reference.binarize(i.x, norm, EPS, True),
        peers=peer,
        bytes=Traffic(rows * d * F32.itemsize, rows * (d // 8 + F32.itemsize)),
        # Compare, square, add; the layer norm also sums and subtracts the mean.
        operations=rows * d * (5 if norm == "layer" else 3),
        limit="read",
        tolerance=ROUNDING,
        targets=(Target(0.75, 0.9),) if norm == "rms" else (),
        quick=quick,
    )


def sign_scale_forward(rows: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        return Inputs(x=normal(g, rows, d), scale=scale(g, d), out=torch.zeros(rows, d))

    return Case(
        title("sign_scale", "forward", f"{rows}x{d}"),
        "sign_scale",
        make,
        ours=lambda i: sign_scale(i.x, i.scale),
        baseline=lambda i: reference.sign_scale(i.x, i.scale, "none", EPS, "ste", CLAMP),
        peers={"torch.copysign": peers.copysign},
        bytes=Traffic(rows * d * F32.itemsize, rows * d * F32.itemsize),
        operations=2 * rows * d,
        limit="copy",
        quick=quick,
    )


def sign_scale_training(rows: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        return Inputs(
            x=normal(g, rows, d).requires_grad_(),
            scale=scale(g, d).requires_grad_(),
            grad=normal(g, rows, d),
            eps=EPS,
            clamp=CLAMP,
        )

    def ours(i: Inputs) -> tuple[torch.Tensor, ...]:
        y = sign_scale(i.x, i.scale, "rms", EPS, clamp=CLAMP)
        return y.detach(), *torch.autograd.grad(y, (i.x, i.scale), i.grad)

    def baseline(i: Inputs) -> tuple[torch.Tensor, ...]:
        x, factors = i.x.detach(), i.scale.detach()
        y = reference.sign_scale(x, factors, "rms", EPS, "ste", CLAMP)
        return y, *reference.sign_scale_backward(i.grad, x, factors, "rms", EPS, "ste", CLAMP)

    size = rows * d * F32.itemsize
    return Case(
        title("sign_scale", "rms forward + backward", f"{rows}x{d}"),
        "sign_scale",
        make,
        ours=ours,
        baseline=baseline,
        peers={"torch autograd of clamp": peers.eager_straight_through},
        # Forward x -> y; backward grad, x -> grad of x.
        bytes=Traffic(3 * size, 2 * size),
        # Forward 2; backward: square and sum 2, normalise 1, window 3, two sums 4, Jacobian 3.
        operations=15 * rows * d,
        limit="copy",
        tolerance=ROUNDING,
        quick=quick,
    )


#: Vocabulary of T5.
VOCABULARY = 32128


def masked(
    operator: str, rows: int, d: int, k: int, zipf: bool = True, vocabulary: int = VOCABULARY, quick: bool = False
) -> Case:
    """The tables belong to the reader and are those of every call, which has new tokens. `zipf`: ids as frequent as the
    words of a text, in proportion to 1 / rank; else all alike, so that few rows of the tables are met again."""

    def tokens(g: Generator) -> dict[str, torch.Tensor]:
        uniform = torch.rand(rows, generator=g, dtype=torch.float64)
        rank = vocabulary**uniform - 1 if zipf else vocabulary * uniform
        ids = rank.long().clamp(max=vocabulary - 1)
        return {"bits": codes(g, rows, d // 8), "codes": codes(g, rows, k // 8), "ids": ids}

    def make(g: Generator) -> Inputs:
        channels = torch.rand(vocabulary, d, generator=g).argsort(-1)[:, :k].sort(-1).values
        selects = torch.zeros(vocabulary, d, dtype=torch.bool).scatter_(1, channels, True)
        fills = torch.randint(2, (vocabulary, d), generator=g, dtype=torch.uint8)
        return Inputs(
            **tokens(g),
            mask=reference.pack_bits(selects),
            fill=reference.pack_bits(fills.bool()),
            channels=channels,
            selects=selects,
            fills=fills,
            picked=torch.zeros(rows, k, dtype=torch.int64),
            selected=torch.zeros(rows, d, dtype=torch.bool),
            ones=torch.zeros(rows, d, dtype=torch.uint8),
            out=torch.zeros(rows, (k if operator == "compress_bits" else d) // 8, dtype=torch.uint8),
        )

    w, c, id_bytes = d // 8, k // 8, 8
    shared = {
        "name": title(
            operator, f"{k} of {d} bits", f"{rows} fresh tokens of {'Zipf' if zipf else 'uniform'} ids, tables in cache"
        ),
        "operator": operator,
        "make_inputs": make,
        "operations": rows * w,  # on bytes: no bit is handled alone
        "limit": "read",
        "in_cache": True,
        "fresh": lambda first, g: Inputs(**{**vars(first), **tokens(g)}),
        "quick": quick,
    }
    if operator == "compress_bits":
        return Case(
            **shared,
            ours=lambda i: compress_bits(i.bits, i.ids, i.mask, k, out=i.out),
            baseline=lambda i: reference.compress_bits(i.bits, i.ids, i.mask, k),
            peers={
                "numpy.take_along_axis of unpacked": peers.numpy_compress,
                "numpy boolean index of unpacked": peers.numpy_compress_selected,
                "torch.gather of unpacked": peers.torch_compress,
            },
            bytes=Traffic(rows * (2 * w + id_bytes), rows * c),
        )
    return Case(
        **shared,
        ours=lambda i: expand_bits(i.codes, i.ids, i.mask, i.fill, out=i.out),
        baseline=lambda i: reference.expand_bits(i.codes, i.ids, i.mask, i.fill),
        peers={"numpy.place into unpacked": peers.numpy_expand, "torch scatter into unpacked": peers.torch_expand},
        bytes=Traffic(rows * (2 * w + c + id_bytes), rows * w),
    )


CASES: tuple[Case, ...] = (
    *(pack(dtype, 512, in_cache=True, quick=dtype == F32) for dtype in (F32, F16, BF16)),
    *(pack(dtype, 40960, quick=dtype == F32) for dtype in (F32, F16, BF16)),
    pack(F32, 40 * 200, LARGE),
    *(unpack(dtype, 512, in_cache=True, quick=dtype == F32) for dtype in (F32, F16, BF16)),
    *(unpack(dtype, 40960, quick=dtype == F32) for dtype in (F32, F16, BF16)),
    unpack(F32, 40 * 200, LARGE),
    restore(40 * 200, quick=True),
    binarize_norm("rms", 40 * 200, quick=True),
    binarize_norm("rms", 40 * 200, LARGE),
    binarize_norm("layer", 40 * 200, quick=True),
    sign_scale_forward(40 * 200, quick=True),
    sign_scale_training(10 * 128, quick=True),
    masked("compress_bits", 6000, BASE, 216, quick=True),
    masked("expand_bits", 6000, BASE, 216, quick=True),
    masked("expand_bits", 6000, BASE, 216, zipf=False),
    masked("expand_bits", 6000, LARGE, 288),
)
