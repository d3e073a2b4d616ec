"""The rows of the benchmark. A new operator is one new row: a function that builds the `Case`, and its line in CASES.

Sizes are those of the reader: T5 base (768 channels, feed-forward 2048) and large (1024 channels, feed-forward 2816),
over 10 passages of 128 tokens and 40 passages of 200.
"""

from __future__ import annotations

import math

import torch

from .. import (
    MergePlan,
    binarize,
    hamming_distance,
    hamming_topk,
    match_tokens,
    merge_bits,
    merge_tokens,
    pack_bits,
    prepare_weight,
    reference,
    sign_scale,
    unpack_bits,
    unpack_matmul,
)
from . import peers
from .case import Case, Inputs, Traffic

BASE, LARGE = 768, 1024
EPS, CLAMP = 1e-6, 2.0
#: Relative error that float32 sums of a few thousand terms may show when only their order differs.
ROUNDING = 1e-5
#: What `prepare_weight` promises for "int8".
INT8_ERROR = 1.2e-2

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
Generator = torch.Generator


def _normal(g: Generator, *shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(shape, generator=g).to(dtype)


def _codes(g: Generator, *shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=g, dtype=torch.uint8)


def _scale(g: Generator, d: int) -> torch.Tensor:
    return torch.rand(d, generator=g) + 0.5


def _title(operator: str, what: str, size: str, in_cache: bool = False) -> str:
    return " ".join(filter(None, (operator, what, size, "in cache" if in_cache else "")))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def pack(dtype: torch.dtype, rows: int, d: int = BASE, in_cache: bool = False, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        return Inputs(
            x=_normal(g, rows, d, dtype=dtype),
            out=torch.zeros(rows, d // 8, dtype=torch.uint8),
            mask=torch.zeros(rows, d, dtype=torch.bool),
        )

    numpy = {"numpy.packbits(x >= 0)": peers.numpy_pack} if dtype == F32 else {}
    return Case(
        _title("pack_bits", _name(dtype), f"{rows}x{d}", in_cache),
        "pack_bits",
        make,
        ours=lambda i: pack_bits(i.x, out=i.out),
        baseline=lambda i: reference.pack_bits(i.x),
        peers={**numpy, "numpy.packbits(torch.ge)": peers.torch_pack},
        bytes=Traffic(rows * d * dtype.itemsize, rows * d // 8),
        operations=rows * d,
        limit="read",
        in_cache=in_cache,
        quick=quick,
    )


def unpack(rows: int, d: int = BASE, in_cache: bool = False, quick: bool = False) -> Case:
    signs_of_byte = reference.signs(torch.arange(256, dtype=torch.uint8)[:, None], 8)

    def make(g: Generator) -> Inputs:
        scale = _scale(g, d)
        return Inputs(
            bits=_codes(g, rows, d // 8),
            scale=scale,
            twice_scale=2 * scale,
            signs_of_byte=signs_of_byte,
            byte=torch.zeros(rows * d // 8, dtype=torch.int32),
            out=torch.zeros(rows, d),
        )

    return Case(
        _title("unpack_bits", "scaled", f"{rows}x{d}", in_cache),
        "unpack_bits",
        make,
        ours=lambda i: unpack_bits(i.bits, d, i.scale, out=i.out),
        baseline=lambda i: reference.unpack_bits(i.bits, d, i.scale, None, None, F32),
        peers={"numpy.unpackbits": peers.numpy_unpack, "torch.index_select of bytes": peers.table_unpack},
        bytes=Traffic(rows * d // 8, rows * d * F32.itemsize),
        operations=rows * d,
        limit="write",
        in_cache=in_cache,
        quick=quick,
    )


def binarize_norm(norm: str, rows: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        # Off-centre, so that a layer norm that forgot the mean is noticed.
        x = _normal(g, rows, d).add_(0.1)
        return Inputs(x=x, mask=torch.zeros(rows, d, dtype=torch.bool), eps=EPS)

    peer = {
        "rms": {"packbits(torch.ge) + vector_norm": peers.pack_with_rms},
        "layer": {"native_layer_norm + packbits": peers.layer_norm_pack},
    }[norm]
    return Case(
        _title("binarize", f"{norm} with magnitude", f"{rows}x{d}"),
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
        quick=quick,
    )


def sign_scale_forward(rows: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        return Inputs(x=_normal(g, rows, d), scale=_scale(g, d), out=torch.zeros(rows, d))

    return Case(
        _title("sign_scale", "forward", f"{rows}x{d}"),
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
            x=_normal(g, rows, d).requires_grad_(),
            scale=_scale(g, d).requires_grad_(),
            grad=_normal(g, rows, d),
            eps=EPS,
            clamp=CLAMP,
        )

    def ours(i: Inputs) -> tuple[torch.Tensor, ...]:
        y = sign_scale(i.x, i.scale, "rms", EPS, clamp=CLAMP)
        return y.detach(), *torch.autograd.grad(y, (i.x, i.scale), i.grad)

    def baseline(i: Inputs) -> tuple[torch.Tensor, ...]:
        x, scale = i.x.detach(), i.scale.detach()
        y = reference.sign_scale(x, scale, "rms", EPS, "ste", CLAMP)
        return y, *reference.sign_scale_backward(i.grad, x, scale, "rms", EPS, "ste", CLAMP)

    size = rows * d * F32.itemsize
    return Case(
        _title("sign_scale", "rms forward + backward", f"{rows}x{d}"),
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


def matmul(m: int, n: int, d: int, form: str, in_cache: bool = False, quick: bool = False) -> Case:
    """`form`: "plain" (weight as it is, with a scale), "prepared" (exact) or "int8"."""
    precision = {"plain": None, "prepared": "exact", "int8": "int8"}[form]

    def make(g: Generator) -> Inputs:
        weight, scale, bits = _normal(g, n, d), _scale(g, d), _codes(g, m, d // 8)
        return Inputs(
            bits=bits,
            weight=weight,
            scale=scale,
            prepared=prepare_weight(weight, scale, precision) if precision else None,
            x=reference.signs(bits, d).mul_(scale),
            out=torch.zeros(m, n),
        )

    def ours(i: Inputs) -> torch.Tensor:
        if i.prepared is None:
            return unpack_matmul(i.bits, i.weight, i.scale, out=i.out)
        return unpack_matmul(i.bits, i.prepared, out=i.out)

    weight_bytes = n * d * (1 if form == "int8" else F32.itemsize)
    return Case(
        _title("unpack_matmul", form, f"M={m} {d}->{n}", in_cache),
        "unpack_matmul",
        make,
        ours=ours,
        baseline=lambda i: torch.matmul(reference.unpack_bits(i.bits, d, i.scale, None, None, F32), i.weight.t()),
        peers={"torch.matmul, unpacked": peers.unpacked_matmul},
        bytes=Traffic(m * d // 8 + weight_bytes, m * n * F32.itemsize),
        operations=2 * m * n * d,
        limit="write" if m * n > n * d else "read",
        tolerance=INT8_ERROR if form == "int8" else ROUNDING,
        in_cache=in_cache,
        quick=quick,
    )


def distances(m: int, n: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        a, b = _codes(g, m, d // 8), _codes(g, n, d // 8)
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
        _title("hamming_distance", "", f"{m}x{n}x{d}"),
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
        quick=quick,
    )


def topk(m: int, n: int, k: int, d: int = BASE, quick: bool = False) -> Case:
    def make(g: Generator) -> Inputs:
        b = _codes(g, n, d // 8)
        return Inputs(a=_codes(g, m, d // 8), b=b, k=k, index=peers.faiss_index(b))

    return Case(
        _title("hamming_topk", f"k={k}", f"{m}x{n}x{d}"),
        "hamming_topk",
        make,
        ours=lambda i: hamming_topk(i.a, i.b, k),
        baseline=lambda i: reference.hamming_topk(i.a, i.b, k),
        peers={"faiss.IndexBinaryFlat": peers.faiss_search},
        bytes=Traffic((m + n) * d // 8, m * k * (torch.int32.itemsize + torch.int64.itemsize)),
        operations=2 * m * n * d,
        limit="read",
        quick=quick,
    )


def match(batch: int, n: int, d: int = BASE, keep: float = 0.5, quick: bool = False) -> Case:
    half = n // 2

    def make(g: Generator) -> Inputs:
        bits = _codes(g, batch, n, d // 8)
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
        _title("match_tokens", f"keep={keep}", f"{batch}x{n}x{d}"),
        "match_tokens",
        make,
        ours=lambda i: match_tokens(i.bits, keep),
        baseline=lambda i: reference.match_tokens(i.bits, i.kept, None, None),
        peers={"torch.bmm of signs + max": peers.bmm_and_max},
        bytes=Traffic(batch * n * d // 8, batch * (n + 1) * torch.int32.itemsize),
        operations=2 * batch * (n - half) * half * d,
        limit="read",
        quick=quick,
    )


def _plan(g: Generator, batch: int, n: int, d: int, keep: float) -> tuple[torch.Tensor, MergePlan, torch.Tensor]:
    """Bits, a plan over them, and the row of the flattened result of every token."""
    bits, rows = _codes(g, batch, n, d // 8), math.ceil(keep * n)
    plan = MergePlan(*reference.match_tokens(bits, torch.full((batch,), rows), None, None), rows)
    # index_add is faster on int64 than on int32.
    return bits, plan, (plan.slot + rows * torch.arange(batch)[:, None]).flatten()


def merge_majority(batch: int, n: int, d: int = BASE, keep: float = 0.5, quick: bool = False) -> Case:
    kept = math.ceil(keep * n)

    def make(g: Generator) -> Inputs:
        bits, plan, rows = _plan(g, batch, n, d, keep)
        signs = reference.signs(bits, d).flatten(0, 1)
        return Inputs(bits=bits, plan=plan, rows=rows, signs=signs, sums=torch.zeros(batch * kept, d))

    return Case(
        _title("merge_bits", f"keep={keep}", f"{batch}x{n}x{d}"),
        "merge_bits",
        make,
        ours=lambda i: merge_bits(i.bits, i.plan),
        baseline=lambda i: reference.merge_bits(i.bits, i.plan.slot, None, kept, None, None),
        peers={"torch.index_add of signs": peers.index_add_signs},
        bytes=Traffic(batch * n * (d // 8 + torch.int32.itemsize), batch * kept * (d // 8 + torch.int32.itemsize)),
        operations=batch * n * d,
        limit="read",
        quick=quick,
    )


def merge_mean(batch: int, n: int, d: int = BASE, keep: float = 0.5, quick: bool = False) -> Case:
    kept = math.ceil(keep * n)

    def make(g: Generator) -> Inputs:
        _, plan, rows = _plan(g, batch, n, d, keep)
        return Inputs(
            x=_normal(g, batch, n, d),
            plan=plan,
            rows=rows,
            sizes=torch.bincount(rows, minlength=batch * kept)[:, None].float(),
            sums=torch.zeros(batch * kept, d),
        )

    return Case(
        _title("merge_tokens", f"keep={keep}", f"{batch}x{n}x{d}"),
        "merge_tokens",
        make,
        ours=lambda i: merge_tokens(i.x, i.plan),
        baseline=lambda i: reference.merge_tokens(i.x, i.plan.slot, None, kept, None, None),
        peers={"torch.index_add": peers.index_add_mean},
        bytes=Traffic(batch * n * (d + 1) * F32.itemsize, batch * kept * (d + 1) * F32.itemsize),
        operations=2 * batch * n * d,
        limit="copy",
        tolerance=ROUNDING,
        quick=quick,
    )


#: Every row, in the order of the table.
CASES: tuple[Case, ...] = (
    pack(F32, 512, in_cache=True, quick=True),
    pack(F32, 40960, quick=True),
    pack(F16, 512, in_cache=True),
    pack(F16, 40960),
    pack(BF16, 512, in_cache=True),
    pack(BF16, 40960),
    pack(F32, 40 * 200, LARGE),
    unpack(512, in_cache=True, quick=True),
    unpack(40960, quick=True),
    unpack(40 * 200, LARGE),
    binarize_norm("rms", 40 * 200, quick=True),
    binarize_norm("rms", 40 * 200, LARGE),
    binarize_norm("layer", 40 * 200, quick=True),
    sign_scale_forward(40 * 200, quick=True),
    sign_scale_training(10 * 128, quick=True),
    *(
        matmul(m, n, BASE, form, quick=(m, n, form) in ((1, 768, "prepared"), (64, 768, "int8"), (512, 768, "plain")))
        for n in (768, 2048)
        for m in (1, 64, 512, 1280, 8192)
        for form in ("plain", "prepared", "int8")
    ),
    matmul(1, 768, BASE, "prepared", in_cache=True),
    matmul(1, 2048, BASE, "prepared", in_cache=True),
    matmul(1280, 1024, LARGE, "prepared", quick=True),
    matmul(1280, 2816, LARGE, "prepared"),
    distances(2048, 2048, quick=True),
    topk(128, 16384, 8, quick=True),
    match(10, 128, quick=True),
    match(40, 200, quick=True),
    match(10, 512),
    match(40, 200, LARGE),
    merge_majority(10, 128, quick=True),
    merge_majority(40, 200),
    merge_mean(10, 128, quick=True),
    merge_mean(40, 200),
)

#: The operators that have rows, in the order of the table.
OPERATORS: tuple[str, ...] = tuple(dict.fromkeys(case.operator for case in CASES))
