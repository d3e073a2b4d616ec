"""The rows of the GPU table: an operator at one size, its peers, its limit and its targets.

A row runs on any device, so that tests run small ones on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from ... import hamming, matmul, reference
from ...bits import binarize, compress_bits, expand_bits, pack_bits, restore_bits, unpack_bits
from ...merging import match_tokens, merge_bits
from ..case import Target

Inputs = SimpleNamespace
Run = Callable[[Inputs], object]

CUBLAS = "cuBLAS bf16, unpacked before"
UNPACK_CUBLAS = "torch unpack + cuBLAS bf16"
#: cuBLAS at the weight's own 8 bits, by PyTorch's private names for it. They do less: no factors of the outputs.
CUBLAS_INT8, CUBLAS_FP8 = "cuBLAS int8, unpacked before", "cuBLAS fp8, unpacked before"
CUBLAS_FLOAT = "cuBLAS float32, unpacked before"
EAGER, COMPILED = "torch eager", "torch.compile"


@dataclass(frozen=True, eq=False)
class Row:
    """An operator at one size.

    Attributes:
        name: unique.
        make: (generator, device) -> a set of inputs, outputs included.
        ours: the operator on such a set, under the backend in force; what it returns is compared with `expected`.
        expected: the same by the reference.
        peers: other ways to the same result, or to less of it, by name.
        bytes: that a call must move if every operand is moved once.
        operations: of the definition, a multiply-add counting 2, bounded by the rate of `arithmetic`.
        arithmetic: "bfloat16" or "float32": the measured matmul that the operations are compared with.
        tolerance: largest relative Frobenius error against `expected`; 0 for integers.
        targets: a ratio to one of `peers`, or without peers the part of the limit.
        needs: the least compute capability, in tens.
        operators, kind, size: what `auto` learns from the row (`backends.measured`): the operators that `ours` calls,
            and the kind and size of their calls.
    """

    name: str
    make: Callable[[torch.Generator, torch.device], Inputs]
    ours: Run
    expected: Run
    peers: Mapping[str, Run]
    bytes: int
    operations: int = 0
    arithmetic: str = "bfloat16"
    tolerance: float = 0.0
    targets: tuple[Target, ...] = ()
    needs: int = field(default=0, kw_only=True)
    operators: tuple[str, ...] = field(default=(), kw_only=True)
    kind: str = field(default="", kw_only=True)
    size: int = field(default=0, kw_only=True)

    def verify(self, inputs: Inputs, run: Run | None = None) -> None:
        """Raise AssertionError unless ours, or `run` in its place, gives what the reference gives."""
        for got, expected in zip(_tensors((run or self.ours)(inputs)), _tensors(self.expected(inputs)), strict=True):
            assert got.shape == expected.shape, f"{self.name}: {tuple(got.shape)}, expected {tuple(expected.shape)}"
            if got.is_floating_point():
                norm = torch.linalg.vector_norm(expected.double())
                error = float(torch.linalg.vector_norm(got.double() - expected.double()) / norm.clamp(min=1e-30))
            else:
                error = float((got != expected).double().mean())
            assert error <= self.tolerance, f"{self.name}: error {error:.3g}, allowed is {self.tolerance:.3g}"


def _tensors(value: object) -> list[Tensor]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [v for v in values if isinstance(v, Tensor)]


def _normal(generator: torch.Generator, device: torch.device, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _bits(generator: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator, device=device, dtype=torch.uint8)


def project(precision: str, dtype: torch.dtype, m: int, n: int, d: int, targets: tuple[Target, ...]) -> Row:
    """`unpack_matmul`; precision "plain" is the weight as it is."""
    bytewise = precision in ("int8", "fp8") and m > 16  # fewer tokens are refused

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        bits = _bits(generator, device, m, d // 8)
        weight = _normal(generator, device, n, d, dtype=dtype)
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
        arithmetic="float32" if float32 and precision == "plain" else "bfloat16",
        tolerance=tolerance,
        targets=targets,
        needs=89 if precision == "fp8" else 0,
        operators=("unpack_matmul" if precision == "plain" else "unpack_matmul_prepared",),
        kind=str(dtype)[6:] if precision == "plain" else precision,
        size=m * d // 8,
    )


def project_gradients(dtype: torch.dtype, m: int, n: int, d: int) -> Row:
    """Gradients of `unpack_matmul` in weight and scale; peers multiply the same matrices and no more."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        bits = _bits(generator, device, m, d // 8)
        return Inputs(
            grad=_normal(generator, device, m, n, dtype=dtype),
            bits=bits,
            weight=_normal(generator, device, n, d, dtype=dtype),
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


#: Of the copy bandwidth.
_STREAMING = (Target(0.85, 0.95),)


def pack(dtype: torch.dtype, m: int, d: int) -> Row:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        out = torch.empty(m, d // 8, dtype=torch.uint8, device=device)
        return Inputs(x=_normal(generator, device, m, d, dtype=dtype), out=out)

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
            bits=_bits(generator, device, m, d // 8), scale=scale, out=torch.empty(m, d, dtype=dtype, device=device)
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
        bits = _bits(generator, device, m, d // 8).cpu()
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
        size=d,
    )


def normalised(norm: str, dtype: torch.dtype, m: int, d: int) -> Row:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        return Inputs(x=_normal(generator, device, m, d, dtype=dtype))

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
            bits=_bits(generator, device, m, w),
            codes=_bits(generator, device, m, c),
            ids=torch.randint(vocabulary, (m,), generator=generator, device=device),
            mask=reference.pack_bits(order < k),
            fill=_bits(generator, device, vocabulary, w),
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


def matched(passages: int, tokens: int, d: int, kept: int, compiler: bool) -> Row:
    """Matching and the majority vote; the peer starts from signs that are unpacked already and ends with bfloat16.
    Compiling it takes tens of seconds a size, so not every row has it."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        bits = _bits(generator, device, passages, tokens, d // 8)
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
            compiled.append(torch.compile(_match_and_merge))
        return compiled[0](i.unpacked, kept)

    return Row(
        f"match_tokens + merge_bits, {passages} x {tokens} x {d} bits to {kept}",
        make,
        ours,
        expected,
        {EAGER: lambda i: _match_and_merge(i.unpacked, kept), **({COMPILED: by_compiler} if compiler else {})},
        bytes=passages * (2 * tokens + kept) * d // 8,
        operations=2 * passages * (tokens // 2) * (tokens - tokens // 2) * d,
        targets=(Target(10, 20, (EAGER,)), *((Target(4, 8, (COMPILED,)),) if compiler else ())),
        operators=("match_tokens", "merge_bits"),
        size=passages * tokens * d // 8,
    )


def _match_and_merge(x: Tensor, kept: int) -> Tensor:
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


def distances(m: int, n: int, d: int) -> Row:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        a, b = _bits(generator, device, m, d // 8), _bits(generator, device, n, d // 8)
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
        a, b = _bits(generator, device, m, d // 8), _bits(generator, device, n, d // 8)
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


def averaged(dtype: torch.dtype, passages: int, tokens: int, d: int) -> Row:
    """`merge_tokens` of pairs: half of the tokens is left."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        slot = torch.rand(passages, tokens, generator=generator, device=device).argsort(-1) // 2
        x = _normal(generator, device, passages, tokens, d, dtype=dtype)
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


def all_rows() -> list[Row]:
    """Every row of the table, those with targets first."""
    bf16, fp32 = torch.bfloat16, torch.float32
    plain = (Target(1.0, 1.1, (CUBLAS,)), Target(2, 3, (UNPACK_CUBLAS,)))
    narrow, few = (Target(1.5, 1.9, (CUBLAS,)),), (Target(1.2, 1.8, (CUBLAS,)),)
    sizes = ((8192, 2048, 768), (8192, 2816, 1024), (65536, 2048, 768))
    rows = [project("plain", bf16, *size, plain) for size in sizes]
    rows += [project(precision, bf16, *size, narrow) for precision in ("int8", "fp8") for size in sizes[:2]]
    rows += [project("plain", fp32, *sizes[0], (Target(3, 4, (CUBLAS_FLOAT,)),))]
    rows += [project("fast", fp32, *sizes[0], (Target(6, 10, (CUBLAS_FLOAT,)),))]
    rows += [project("int8", bf16, m, 2048, 768, few) for m in (1, 8, 16, 64)]
    rows += [project("int8", bf16, 1, 768, 768, few), project("int8", bf16, 8, 5632, 1024, few)]
    rows += [pack(dtype, 262144, 768) for dtype in (bf16, fp32)]
    rows += [unpack(dtype, 262144, 768) for dtype in (bf16, fp32)]
    rows += [normalised(norm, bf16, 262144, 768) for norm in ("rms", "layer")]
    rows += [masked(operator, 65536, 768, 216) for operator in ("expand_bits", "compress_bits")]
    sizes = ((40, 128, True), (40, 512, False), (320, 256, False), (1280, 128, True))
    rows += [matched(b, n, 768, n // 2, compiler) for b, n, compiler in sizes]
    rows += [project("plain", bf16, 8, 2048, 768, ()), project_gradients(bf16, 8192, 2048, 768)]
    rows += [distances(2048, 2048, 768), distances(16384, 16384, 768), nearest(1024, 65536, 768, 16)]
    return [*rows, averaged(bf16, 40, 256, 768), restored(bf16, 8 * 40 * 64, 768)]


def sets_past(cache: int, row: Row, room: int) -> int:
    """How many sets of inputs together exceed the cache four times, within `room` bytes of memory (inputs of peers
    are up to 16 times larger) and 128 sets."""
    return max(1, min(128, math.ceil(4 * cache / row.bytes), room // (20 * row.bytes)))
