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
from .common import INTERPRET, on_device, power_of_two
from .epilogue import add_parts, columns_of, operand, write
from .expand import as_words, masks, signs
from .few import project_few
from .terms import in_memory, terms_of
from .tiles import FEW, configurations


@triton.jit(do_not_specialize=["m"])
def _project(
    table, words, weight, factors, bias, token_scale, out, m, n_columns, stride_n, stride_k, plane,
    D: tl.constexpr, ROW_WORDS: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr, BLOCK_FACTORS: tl.constexpr,
    GATED: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """words (M, ROW_WORDS) of WIDTH bits, weight (N, D) -> out (M, N): a tile of BM x BN a program.

    The weight is TERMS matrices, `plane` elements apart, of a dtype that is multiplied as it is. `factors` are one a
    column, or with BLOCK_FACTORS one a step and column. With SPLIT > 1 a program does one of as many parts of the
    channels, and out (SPLIT, M, N) are sums for `add_parts`.
    """
    HALVES: tl.constexpr = 2 if GATED else 1
    columns = tl.cdiv(n_columns // HALVES, BN // HALVES)
    program = tl.program_id(0).to(tl.int64)
    part = program % SPLIT
    tile = program // SPLIT
    # Programs that run together share tokens; the weight stays in L2.
    row = (tile // columns) * BM + tl.arange(0, BM)
    first, n, exists = columns_of(tile % columns, n_columns, BN, GATED)
    stored: tl.constexpr = weight.dtype.element_ty
    exact: tl.constexpr = tl.float8e4nv if stored == tl.uint8 else stored
    # The interpreter multiplies only float32 and int8 correctly.
    dtype: tl.constexpr = tl.float32 if INTERPRET and exact != tl.int8 else exact
    WORDS: tl.constexpr = BK // WIDTH
    mask_table = tl.load(table + tl.arange(0, WIDTH))
    acc = tl.zeros((BM, BN), tl.int32 if exact == tl.int8 else tl.float32)
    STEPS: tl.constexpr = (D + BK * SPLIT - 1) // (BK * SPLIT)
    # Terms take turns, the least first: the sum is then small in all sweeps but the last, and tensor cores, which cut
    # off what they add to a large sum, cut off less. With factors a step needs all terms of its block.
    SWEEPS: tl.constexpr = 1 if BLOCK_FACTORS else TERMS
    for turn in range(SWEEPS * STEPS):
        step = (part * STEPS + turn % STEPS).to(tl.int32)
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
        total = tl.zeros_like(acc) if BLOCK_FACTORS else acc
        first_term = SWEEPS - 1 - turn // STEPS
        pointers = weight + n[:, None] * stride_n + k[None, :].to(tl.int64) * stride_k
        for i in tl.static_range(TERMS // SWEEPS):
            b = tl.load(pointers + (first_term + i).to(tl.int64) * plane, mask=mask, other=0.0)
            total = tl.dot(a, tl.trans(operand(b, dtype)), total, out_dtype=acc.dtype)
        if BLOCK_FACTORS:
            factor = tl.load(factors + (step * n_columns + n), mask=exists, other=0)
            acc += total * factor[None, :]
        else:
            acc = total
    if BLOCK_FACTORS:
        factors = None
    write(
        acc, out, factors, token_scale, bias, row, m, first, n, exists, n_columns, part, SPLIT, GATED, BM, BN
    )  # fmt: skip


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
    configs = configurations(m, n, d, weight.element_size(), terms, block_factors, gated, bits.device)
    key = (power_of_two(m), n, d, weight.dtype, terms, out.dtype, gated)
    weight = _strided(weight)
    if INTERPRET and weight.dtype == torch.float8_e4m3fn:  # the interpreter cannot load them
        weight = weight.view(torch.uint8)
    with on_device(bits):
        plane, (stride_n, stride_k) = 0, weight.stride()
        if terms is not None and m > FEW:
            weight = in_memory(weight, scale, terms)
            plane, stride_n, stride_k = weight.stride()
        table = masks(bits.device)
        sums = torch.int32 if weight.dtype == torch.int8 else torch.float32
        common = {
            "D": d, "ROW_WORDS": words.shape[1], "WIDTH": 8 * words.element_size(), "BLOCK_FACTORS": block_factors,
            "GATED": gated, "enable_fp_fusion": False,
        }  # fmt: skip

        def launch(SPLIT: int, BM: int, BN: int, BK: int, SLICES: int = 0, **options: int) -> None:
            results = out if SPLIT == 1 else out.new_empty((SPLIT, m, n), dtype=sums)
            # Of a gated one, half as many columns in tiles half as wide.
            grid = (triton.cdiv(m, BM) * triton.cdiv(n, BN) * SPLIT,)
            tile = {"SPLIT": SPLIT, "BM": BM, "BN": BN, "BK": BK, **options, **common}
            if SLICES:
                project_few[grid](
                    table, words, weight, scale, factors, bias, token_scale, results, m, n, stride_n, stride_k,
                    TERMS=terms or 0, SLICES=SLICES, **tile,
                )  # fmt: skip
            else:
                _project[grid](
                    table, words, weight, factors, bias, token_scale, results, m, n, stride_n, stride_k, plane,
                    TERMS=terms or 1, **tile,
                )  # fmt: skip
            if SPLIT > 1:
                add_parts(results, None if block_factors else factors, bias, token_scale, out, gated)

        tuning.run("project", configs, key, launch, bits.device)
