"""The projection of few tokens: bound by reading the weight, so that what counts are bytes under way and instructions.

The weight is the first operand of the tensor cores: tokens are then padded to 8 instead of 16, and a warp expands the
signs once for 16 columns or more. All warps of a program have the same columns and each a slice of the channels, so
that even the few columns of a small weight keep many warps busy, without a second kernel to add what they found.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import INTERPRET
from .epilogue import columns_of, operand, write
from .expand import signs
from .terms import leading_term, rest, values


@triton.jit(do_not_specialize=["m"])
def project_few(
    table, words, weight, scale, factors, bias, token_scale, out, m, n_columns, stride_n, stride_k,
    D: tl.constexpr, ROW_WORDS: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr, BLOCK_FACTORS: tl.constexpr,
    GATED: tl.constexpr, SPLIT: tl.constexpr, SLICES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """words (M, ROW_WORDS) of WIDTH bits, M <= BM, weight (N, D) -> out (M, N): BN columns a program, SLICES x BK
    channels a step.

    With TERMS > 0 the weight is multiplied as a sum of that many terms, else as it is. `factors` are one a column, or
    with BLOCK_FACTORS one a column and BK channels. With SPLIT > 1 a program does one of as many parts of the
    channels, and out (SPLIT, M, N) are sums for `add_parts`.
    """
    program = tl.program_id(0).to(tl.int64)
    part = program % SPLIT
    row = tl.arange(0, BM)
    first, n, exists = columns_of(program // SPLIT, n_columns, BN, GATED)
    stored: tl.constexpr = tl.bfloat16 if TERMS > 0 else weight.dtype.element_ty
    exact: tl.constexpr = tl.float8e4nv if stored == tl.uint8 else stored
    # The interpreter multiplies only float32 and int8 correctly.
    dtype: tl.constexpr = tl.float32 if INTERPRET and exact != tl.int8 else exact
    WORDS: tl.constexpr = BK // WIDTH
    BLOCKS: tl.constexpr = (D + BK - 1) // BK
    STEPS: tl.constexpr = (BLOCKS + SLICES * SPLIT - 1) // (SLICES * SPLIT)
    mask_table = tl.load(table + tl.arange(0, WIDTH))
    acc = tl.zeros((SLICES, BN, BM), tl.int32 if exact == tl.int8 else tl.float32)
    for turn in range(STEPS):
        block = ((part * STEPS + turn) * SLICES).to(tl.int32) + tl.arange(0, SLICES)
        word = (block[:, None] * WORDS + tl.arange(0, WORDS)[None, :])[:, None, :]
        k = (block[:, None] * BK + tl.arange(0, BK)[None, :])[:, None, :]
        token_mask = (row < m)[None, :, None]
        mask = exists[None, :, None]
        if D % (BK * SLICES * SPLIT) != 0:
            token_mask = token_mask & (word < ROW_WORDS)
            mask = mask & (k < D)
        a = signs(
            tl.load(words + row[None, :, None] * ROW_WORDS + word, mask=token_mask, other=0),
            mask_table, dtype, WORDS, WIDTH,
        )  # fmt: skip
        a = tl.permute(a, (0, 2, 1))
        pointers = weight + n[None, :, None] * stride_n + k.to(tl.int64) * stride_k
        if TERMS > 0:
            total = tl.zeros_like(acc)
            value = values(pointers, mask, scale, k, k < D)
            for _ in tl.static_range(TERMS):
                term = leading_term(value)
                total = tl.dot(term.to(dtype), a, total, out_dtype=acc.dtype)
                value = rest(value, term)
            if BLOCK_FACTORS:
                counted = (block < BLOCKS)[:, None] & exists[None, :]
                factor = tl.load(factors + block[:, None] * n_columns + n[None, :], mask=counted, other=0)
                total *= factor[:, :, None]
            acc += total
        else:
            acc = tl.dot(operand(tl.load(pointers, mask=mask, other=0.0), dtype), a, acc, out_dtype=acc.dtype)
    total = tl.trans(tl.sum(acc, axis=0))
    if BLOCK_FACTORS:
        factors = None
    write(
        total, out, factors, token_scale, bias, row, m, first, n, exists, n_columns, part, SPLIT, GATED, BM, BN
    )  # fmt: skip
