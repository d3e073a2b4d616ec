"""Packed signs times a matrix of weights: the kernels of `unpack_matmul`, `unpack_geglu` and their prepared forms.

Bound by the tensor cores for many tokens, by reading the weight for few. Signs are exact in every dtype that tensor
cores take, so weights decide: 16-bit floats and 8-bit weights are multiplied as they are, all others as a sum of
bfloat16 terms (`terms.py`), one multiplication a term.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import INTERPRET, on_device, power_of_two, rounded, widened
from .expand import as_words, masks, signs
from .terms import in_memory, leading_term, rest, terms_of, values
from .tiles import FEW, configurations

#: Results that a program of `_add_parts` makes.
_RESULTS = 256


@triton.jit(do_not_specialize=["m"])
def _project(
    table, words, weight, scale, factors, bias, token_scale, out, m, n_columns, stride_n, stride_k, plane,
    D: tl.constexpr, ROW_WORDS: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr, IN_MEMORY: tl.constexpr,
    BLOCK_FACTORS: tl.constexpr, GATED: tl.constexpr, TURNED: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """words (M, ROW_WORDS) of WIDTH bits, weight (N, D) -> out (M, N): a tile of BM x BN a program.

    With IN_MEMORY the weight is TERMS matrices, `plane` elements apart, of a dtype that is multiplied as it is;
    otherwise terms are made of `values`. `factors` are one a column, or with BLOCK_FACTORS one a step and column.
    TURNED makes the weight the first operand of the tensor cores. With SPLIT > 1 a program does one of as many parts
    of the channels, and out (SPLIT, M, N) are sums for `_add_parts`.
    """
    # A tile of a gated projection is as many of the gate's columns and then the same ones of the other half.
    HALVES: tl.constexpr = 2 if GATED else 1
    WIDE: tl.constexpr = BN // HALVES
    n_out = n_columns // HALVES
    columns = tl.cdiv(n_out, WIDE)
    program = tl.program_id(0).to(tl.int64)
    part_of_channels = program % SPLIT
    tile = program // SPLIT
    # Programs that run together share tokens; the weight stays in L2.
    row = (tile // columns) * BM + tl.arange(0, BM)
    first = (tile % columns) * WIDE
    column = first + tl.arange(0, BN) % WIDE
    exists = column < n_out
    n = column + (tl.arange(0, BN) // WIDE) * n_out
    stored: tl.constexpr = weight.dtype.element_ty if IN_MEMORY else tl.bfloat16
    exact: tl.constexpr = tl.float8e4nv if stored == tl.uint8 else stored
    # The interpreter multiplies only float32 and int8 correctly.
    dtype: tl.constexpr = tl.float32 if INTERPRET and exact != tl.int8 else exact
    WORDS: tl.constexpr = BK // WIDTH
    mask_table = tl.load(table + tl.arange(0, WIDTH))
    acc = tl.zeros((BN, BM) if TURNED else (BM, BN), tl.int32 if exact == tl.int8 else tl.float32)
    ALL_STEPS: tl.constexpr = (D + BK - 1) // BK
    STEPS: tl.constexpr = (ALL_STEPS + SPLIT - 1) // SPLIT
    # Terms in memory take turns, the least first: the sum is then small in all sweeps but the last, and tensor cores,
    # which cut off what they add to a large sum, cut off less. With factors a step needs all terms of its block.
    SWEEPS: tl.constexpr = TERMS if IN_MEMORY and not BLOCK_FACTORS else 1
    for turn in range(SWEEPS * STEPS):
        step = (part_of_channels * STEPS + turn % STEPS).to(tl.int32)
        word = step * WORDS + tl.arange(0, WORDS)
        k = step * BK + tl.arange(0, BK)
        if D % (BK * SPLIT) == 0:
            token_mask = (row < m)[:, None]
            mask = exists[:, None]
        else:
            token_mask = (row < m)[:, None] & (word < ROW_WORDS)[None, :]
            mask = exists[:, None] & (k < D)[None, :]
        a = signs(
            tl.load(words + row[:, None] * ROW_WORDS + word[None, :], mask=token_mask, other=0),
            mask_table, dtype, WORDS, WIDTH,
        )  # fmt: skip
        part = tl.zeros_like(acc) if BLOCK_FACTORS or not IN_MEMORY else acc
        if IN_MEMORY:
            first_term = SWEEPS - 1 - turn // STEPS
            pointers = weight + n[:, None] * stride_n + k[None, :].to(tl.int64) * stride_k
            for i in tl.static_range(TERMS // SWEEPS):
                b = tl.load(pointers + (first_term + i).to(tl.int64) * plane, mask=mask, other=0.0)
                part = _multiplied(a, _operand(b, dtype), part, TURNED)
        else:
            value = values(weight, scale, n, exists, stride_n, stride_k, k, D)
            for _ in tl.static_range(TERMS):
                term = leading_term(value)
                part = _multiplied(a, term.to(dtype), part, TURNED)
                value = rest(value, term)
        if BLOCK_FACTORS:
            block = tl.minimum(step, ALL_STEPS - 1)  # past the end there is nothing to count
            factor = tl.load(factors + (block * n_columns + n), mask=exists, other=0)
            acc += part * (factor[:, None] if TURNED else factor[None, :])
        elif IN_MEMORY:
            acc = part
        else:
            acc += part

    if TURNED:
        acc = tl.trans(acc)
    row = row[:, None]
    if SPLIT > 1:
        place = (part_of_channels * m + row) * n_columns + n[None, :]
        tl.store(out + place, acc, mask=(row < m) & exists[None, :])
    else:
        y = _finished(acc, factors, token_scale, bias, row, n[None, :], row < m, exists[None, :], BLOCK_FACTORS)
        if GATED:
            gate, linear = tl.split(tl.permute(tl.reshape(y, (BM, 2, WIDE)), (0, 2, 1)))
            y = _gelu(gate) * linear
        column = (first + tl.arange(0, WIDE))[None, :]
        tl.store(out + row * n_out + column, rounded(y, out.dtype.element_ty), mask=(row < m) & (column < n_out))


@triton.jit
def _multiplied(a, b, acc, TURNED: tl.constexpr):
    """acc + a @ b.T of a (BM, BK) and b (BN, BK), or with TURNED its transpose."""
    if TURNED:
        return tl.dot(b, tl.trans(a), acc, out_dtype=acc.dtype)
    else:
        return tl.dot(a, tl.trans(b), acc, out_dtype=acc.dtype)


@triton.jit
def _finished(total, factors, token_scale, bias, row, n, row_exists, n_exists, BLOCK_FACTORS: tl.constexpr):
    """Sums over all channels -> float32 results, for rows and columns of shapes that broadcast with them."""
    y = total.to(tl.float32)
    if factors is not None and not BLOCK_FACTORS:
        y *= tl.load(factors + n, mask=n_exists, other=0)
    if token_scale is not None:
        y *= widened(tl.load(token_scale + row, mask=row_exists, other=0))
    if bias is not None:
        y += widened(tl.load(bias + n, mask=n_exists, other=0))
    return y


@triton.jit(do_not_specialize=["m"])
def _add_parts(
    parts, factors, bias, token_scale, out, m, n_columns, SPLIT: tl.constexpr, BLOCK_FACTORS: tl.constexpr,
    GATED: tl.constexpr, RESULTS: tl.constexpr,
):  # fmt: skip
    """parts (SPLIT, M, N) -> out (M, N): the parts added in their order, then what `_project` does without SPLIT."""
    n_out = n_columns // 2 if GATED else n_columns
    place = tl.program_id(0).to(tl.int64) * RESULTS + tl.arange(0, RESULTS)
    row, n = place // n_out, place % n_out
    inside = row < m
    y = _finished(
        _sum(parts, row, n, m, n_columns, inside, SPLIT), factors, token_scale, bias, row, n, inside, inside,
        BLOCK_FACTORS,
    )  # fmt: skip
    if GATED:
        other = _sum(parts, row, n + n_out, m, n_columns, inside, SPLIT)
        y = _gelu(y) * _finished(
            other, factors, token_scale, bias, row, n + n_out, inside, inside, BLOCK_FACTORS
        )  # fmt: skip
    tl.store(out + place, rounded(y, out.dtype.element_ty), mask=inside)


@triton.jit
def _sum(parts, row, n, m, n_columns, inside, SPLIT: tl.constexpr):
    total = tl.load(parts + row * n_columns + n, mask=inside, other=0)
    for i in tl.static_range(1, SPLIT):
        total += tl.load(parts + (i * m + row) * n_columns + n, mask=inside, other=0)
    return total


@triton.jit
def _gelu(x):
    """In its approximation by tanh: x (1 + tanh u) / 2 = x / (1 + exp(-2 u)), 0 where tanh rounds to -1 in float32."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.where(u < -9.01, 0.0, 1.0 / (1.0 + tl.exp(-2.0 * u)))


@triton.jit
def _operand(value, dtype: tl.constexpr):
    if value.dtype == tl.uint8:
        value = value.to(tl.float8e4nv, bitcast=True)
    if INTERPRET and dtype == tl.float32:
        return widened(value)
    else:
        return value


def _strided(weight: Tensor) -> Tensor:
    """A weight (N, d) that can be read in 16-byte vectors along one of its dimensions where that is possible; along
    the channels for 8 bits, which tensor cores take in no other order."""
    vector = 16 // weight.element_size()
    along_d = weight.stride(1) == 1 and weight.stride(0) % vector == 0
    along_n = weight.stride(0) == 1 and weight.stride(1) % vector == 0 and weight.element_size() > 1
    return weight if along_d or along_n else weight.contiguous()


def project(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    factors: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out: Tensor,
    gated: bool = False,
) -> None:
    """token_scale * ((+-1 * scale) @ (weight * factors).T) + bias for weight (N, d), any strides; factors
    (blocks, N) of an int16 weight, (1, N) of an int8, float8 or float16 one. If gated, the gelu of the first half of
    the columns times the second."""
    if out.numel() == 0:
        return
    n, d = weight.shape
    words = as_words(bits)
    scale, factors, bias, token_scale = (
        None if v is None else v.contiguous() for v in (scale, factors, bias, token_scale)
    )
    m = words.shape[0]
    terms = terms_of(weight.dtype, scale, out.dtype)
    block_factors = weight.dtype == torch.int16
    direct = terms is None or m > FEW  # the kernel multiplies what it loads
    configs = configurations(m, n, d, weight.element_size(), terms, block_factors, gated, bits.device)
    key = (power_of_two(m), n, d, weight.dtype, terms, out.dtype, gated)
    weight = _strided(weight)
    if INTERPRET and weight.dtype == torch.float8_e4m3fn:  # the interpreter cannot load them
        weight = weight.view(torch.uint8)
    with on_device(bits):
        plane, (stride_n, stride_k) = 0, weight.stride()
        if terms is not None and direct:
            weight, scale = in_memory(weight, scale, terms), None
            plane, stride_n, stride_k = weight.stride()
        table = masks(bits.device)

        def launch(BM: int, BN: int, BK: int, TURNED: int, SPLIT: int, num_warps: int, num_stages: int) -> None:
            sums = torch.int32 if weight.dtype == torch.int8 else torch.float32
            results = out if SPLIT == 1 else out.new_empty((SPLIT, m, n), dtype=sums)
            # Of a gated one, half as many columns in tiles half as wide.
            grid = triton.cdiv(m, BM) * triton.cdiv(n, BN) * SPLIT
            _project[(grid,)](
                table, words, weight, scale, factors, bias, token_scale, results, m, n, stride_n, stride_k, plane,
                D=d, ROW_WORDS=words.shape[1], WIDTH=8 * words.element_size(), TERMS=terms or 1, IN_MEMORY=direct,
                BLOCK_FACTORS=block_factors, GATED=gated, TURNED=TURNED, SPLIT=SPLIT, BM=BM, BN=BN, BK=BK,
                num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False,
            )  # fmt: skip
            if SPLIT > 1:
                _add_parts[(triton.cdiv(out.numel(), _RESULTS),)](
                    results, factors, bias, token_scale, out, m, n, SPLIT=SPLIT, BLOCK_FACTORS=block_factors,
                    GATED=gated, RESULTS=_RESULTS, num_warps=4, enable_fp_fusion=False,
                )  # fmt: skip

        tuning.run("project", configs, key, launch, bits.device)
