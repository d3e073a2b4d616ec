"""Packed signs times a matrix of weights: the kernels of `unpack_matmul`, `unpack_geglu` and their prepared forms.

Bound by the tensor cores for many tokens, by reading the weight for few. Signs are exact in every dtype that tensor
cores take, so weights decide: 16-bit floats and 8-bit weights are multiplied as they are, all others as a sum of
bfloat16 terms (8 bits of the fraction each), one multiplication a term: two hold an int16 exactly, three a float32.
For many tokens the terms are written once to memory, from where they stream into the multiplication as a 16-bit
weight does; for few tokens they are made in registers, since the weight is read about once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.matmul import BLOCK
from . import tuning
from .common import INTERPRET, on_device, power_of_two, rounded, widened
from .expand import as_words, masks, signs

#: Up to this many tokens the weight is read about once, by programs with few columns each.
FEW = 64
#: Rows of terms start at multiples of this many channels, so that they are read in 16-byte vectors.
_ALIGNED = 16

#: Tiles for many tokens. Wide ones use each expanded sign for many columns and each loaded weight for many tokens.
_MANY = {
    90: (
        {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},  # hundreds of tokens: more programs
    ),
    80: (
        {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3},
        {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 64, "BK": 64, "num_warps": 4, "num_stages": 4},
    ),
    0: ({"BM": 128, "BN": 128, "BK": 512, "num_warps": 4, "num_stages": 1},),
}
#: The same for 8 bits a weight.
_MANY_BYTES = {
    90: (
        {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 128, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},
    ),
    80: (
        {"BM": 128, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},
    ),
    0: ({"BM": 128, "BN": 128, "BK": 512, "num_warps": 4, "num_stages": 1},),
}
#: The same with factors for blocks of channels, whose sums take as many registers as the result.
_MANY_BLOCKS = {
    90: ({"BM": 128, "BN": 128, "BK": BLOCK, "num_warps": 8, "num_stages": 3},),
    80: ({"BM": 64, "BN": 64, "BK": BLOCK, "num_warps": 4, "num_stages": 3},),
    0: ({"BM": 128, "BN": 128, "BK": BLOCK, "num_warps": 4, "num_stages": 1},),
}
#: Tiles for few tokens: few columns, so that every processor has a program, and many bytes of weight under way.
_FEW = {
    80: (
        {"BN": 16, "BK": 256, "num_warps": 4, "num_stages": 3},
        {"BN": 32, "BK": 128, "num_warps": 4, "num_stages": 4},
        {"BN": 64, "BK": 128, "num_warps": 4, "num_stages": 3},
        {"BN": 16, "BK": 128, "num_warps": 2, "num_stages": 4},
    ),
    0: ({"BN": 128, "BK": 512, "num_warps": 4, "num_stages": 1},),
}
#: Tiles that make terms.
_ROWS, _CHANNELS = 16, 256


@triton.jit
def _values(weight, scale, n, exists, stride_n, stride_k, k, d):
    """float32 (columns, channels): weight * scale of the channel, 0 where a column or channel does not exist."""
    inside = exists[:, None] & (k < d)[None, :]
    value = widened(tl.load(weight + n[:, None] * stride_n + k[None, :].to(tl.int64) * stride_k, mask=inside, other=0))
    if scale is not None:
        value *= widened(tl.load(scale + k, mask=k < d, other=0))[None, :]
    return value


@triton.jit
def _leading_term(value):
    """The part of a float32 that bfloat16 holds, cut off rather than rounded: no overflow, and three are exact."""
    cut = (value.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return tl.where(value == value, cut, value)


@triton.jit
def _rest(value, term):
    """What a term leaves; nothing of an infinity."""
    return tl.where(tl.abs(value) == float("inf"), 0.0, value - term)


@triton.jit(do_not_specialize=["n_columns"])
def _terms(
    weight, scale, out, n_columns, stride_n, stride_k, d, row, plane,
    TERMS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """weight (N, d) -> out (TERMS, N, row) bfloat16 whose sum over terms is `_values`; zeros from d to `row`."""
    blocks = tl.cdiv(row, CHANNELS)
    program = tl.program_id(0)
    n = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = (program % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    value = _values(weight, scale, n, n < n_columns, stride_n, stride_k, k, d)
    inside = (n < n_columns)[:, None] & (k < row)[None, :]
    for i in tl.static_range(TERMS):
        term = _leading_term(value)
        tl.store(out + i * plane + n[:, None] * row + k[None, :], rounded(term, tl.bfloat16), mask=inside)
        value = _rest(value, term)


@triton.jit(do_not_specialize=["m"])
def _project(
    table, words, weight, scale, factors, bias, token_scale, out, m, n_columns, stride_n, stride_k, plane,
    D: tl.constexpr, ROW_WORDS: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr, IN_MEMORY: tl.constexpr,
    BLOCK_FACTORS: tl.constexpr, GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """words (M, ROW_WORDS) of WIDTH bits, weight (N, D) -> out (M, N): a tile of BM x BN a program.

    With IN_MEMORY the weight is TERMS matrices, `plane` elements apart, of a dtype that is multiplied as it is;
    otherwise terms are made of `_values`. `factors` are one a column, or with BLOCK_FACTORS one a step and column.
    """
    # A tile of a gated projection is as many of the gate's columns and then the same ones of the other half.
    HALVES: tl.constexpr = 2 if GATED else 1
    WIDE: tl.constexpr = BN // HALVES
    n_out = n_columns // HALVES
    columns = tl.cdiv(n_out, WIDE)
    program = tl.program_id(0).to(tl.int64)
    # Programs that run together share tokens; the weight stays in L2.
    row = (program // columns) * BM + tl.arange(0, BM)
    first = (program % columns) * WIDE
    column = first + tl.arange(0, BN) % WIDE
    exists = column < n_out
    n = column + (tl.arange(0, BN) // WIDE) * n_out
    stored: tl.constexpr = weight.dtype.element_ty if IN_MEMORY else tl.bfloat16
    exact: tl.constexpr = tl.float8e4nv if stored == tl.uint8 else stored
    # The interpreter multiplies only float32 and int8 correctly.
    dtype: tl.constexpr = tl.float32 if INTERPRET and exact != tl.int8 else exact
    WORDS: tl.constexpr = BK // WIDTH
    mask_table = tl.load(table + tl.arange(0, WIDTH))
    acc = tl.zeros((BM, BN), tl.int32 if exact == tl.int8 else tl.float32)
    STEPS: tl.constexpr = (D + BK - 1) // BK
    # Terms in memory take turns, the least first: the sum is then small in all sweeps but the last, and tensor cores,
    # which cut off what they add to a large sum, cut off less. With factors a step needs all terms of its block.
    SWEEPS: tl.constexpr = TERMS if IN_MEMORY and not BLOCK_FACTORS else 1
    for turn in range(SWEEPS * STEPS):
        step = turn % STEPS
        word = step * WORDS + tl.arange(0, WORDS)
        k = step * BK + tl.arange(0, BK)
        if D % BK == 0:
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
                part = tl.dot(a, tl.trans(_operand(b, dtype)), part, out_dtype=acc.dtype)
        else:
            value = _values(weight, scale, n, exists, stride_n, stride_k, k, D)
            for _ in tl.static_range(TERMS):
                term = _leading_term(value)
                part = tl.dot(a, tl.trans(term.to(dtype)), part, out_dtype=acc.dtype)
                value = _rest(value, term)
        if BLOCK_FACTORS:
            factor = tl.load(factors + (step * n_columns + n), mask=exists, other=0)
            acc += part * factor[None, :]
        elif IN_MEMORY:
            acc = part
        else:
            acc += part

    y = acc.to(tl.float32)
    if factors is not None and not BLOCK_FACTORS:
        y *= tl.load(factors + n, mask=exists, other=0)[None, :]
    if token_scale is not None:
        y *= widened(tl.load(token_scale + row, mask=row < m, other=0))[:, None]
    if bias is not None:
        y += widened(tl.load(bias + n, mask=exists, other=0))[None, :]
    if GATED:
        gate, linear = tl.split(tl.permute(tl.reshape(y, (BM, 2, WIDE)), (0, 2, 1)))
        y = _gelu(gate) * linear
    column = first + tl.arange(0, WIDE)
    inside = (row < m)[:, None] & (column < n_out)[None, :]
    tl.store(out + row[:, None] * n_out + column[None, :], rounded(y, out.dtype.element_ty), mask=inside)


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


def _terms_of(weight: Tensor, scale: Tensor | None, out: Tensor) -> int | None:
    """How many terms stand for the weight, None if it is multiplied as it is. They are exact, or leave an error below
    that of rounding to a 16-bit result."""
    if scale is None and weight.dtype not in (torch.float32, torch.int16):
        return None
    return 3 if out.dtype == torch.float32 and weight.dtype != torch.int16 else 2


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
    scale, bias, token_scale = (None if v is None else v.contiguous() for v in (scale, bias, token_scale))
    m = words.shape[0]
    width = 8 * words.element_size()
    terms = _terms_of(weight, scale, out)
    block_factors = weight.dtype == torch.int16
    in_memory = terms is None or m > FEW
    weight = _strided(weight)
    if INTERPRET and weight.dtype == torch.float8_e4m3fn:  # the interpreter cannot load them
        weight = weight.view(torch.uint8)
    with on_device(bits):
        plane, (stride_n, stride_k) = 0, weight.stride()
        if terms is not None and in_memory:
            row = triton.cdiv(d, _ALIGNED) * _ALIGNED
            made = weight.new_empty((terms, n, row), dtype=torch.bfloat16)
            plane = n * row
            grid = triton.cdiv(n, _ROWS) * triton.cdiv(row, _CHANNELS)
            _terms[(grid,)](
                weight, scale, made, n, stride_n, stride_k, d, row, plane,
                TERMS=terms, ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
            weight, scale, stride_n, stride_k = made, None, row, 1
        table = masks(bits.device)

        def launch(BM: int, BN: int, BK: int, num_warps: int, num_stages: int) -> None:
            grid = triton.cdiv(m, BM) * triton.cdiv(n, BN)  # of a gated one, half as many columns in tiles half as wide
            _project[(grid,)](
                table, words, weight, scale, factors, bias, token_scale, out, m, n, stride_n, stride_k, plane,
                D=d, ROW_WORDS=words.shape[1], WIDTH=width, TERMS=terms or 1, IN_MEMORY=in_memory,
                BLOCK_FACTORS=block_factors, GATED=gated, BM=BM, BN=BN, BK=BK,
                num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False,
            )  # fmt: skip

        configs = _configurations(m, weight, terms, block_factors, gated, bits.device)
        key = (power_of_two(m), n, d, weight.dtype, terms, out.dtype, gated)
        tuning.run("project", configs, key, launch, bits.device)


def _configurations(
    m: int, weight: Tensor, terms: int | None, block_factors: bool, gated: bool, device: torch.device
) -> list[tuning.Config]:
    byte = weight.element_size() == 1
    if m > FEW:
        table = _MANY_BLOCKS if block_factors else _MANY_BYTES if byte else _MANY
        found = list(tuning.for_device(table, device))
    else:
        found = [{"BM": max(16, power_of_two(m)), **config} for config in tuning.for_device(_FEW, device)]
        if terms:  # float32 values and their terms take registers
            found = [{**config, "BK": BLOCK if block_factors else config["BK"] // 4} for config in found]
        if byte:  # as many bytes a step
            found = [{**config, "BK": 2 * config["BK"]} for config in found]
    if gated:  # combining the halves takes registers
        found = [config for config in found if config["BN"] <= 128]
    return found
