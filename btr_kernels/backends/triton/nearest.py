"""Hamming distances by tensor cores: d - 2 * distance is the product of +-1 rows, an exact integer in int8.

By the rates that NVIDIA documents, a pair of 768 bits takes a fifth of a cycle of a Hopper processor so, expanding the
bits aside, and one and a half with XOR and population counts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .expand import signs


@triton.jit
def distances(
    a, b, row_a, row_b, rows_a, rows_b, table,
    W: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """int32 (len(row_a), len(row_b)) distances of rows of W words of WIDTH bits, WORDS of them a step."""
    products = tl.zeros((row_a.shape[0], row_b.shape[0]), tl.int32)
    STEPS: tl.constexpr = (W + WORDS - 1) // WORDS
    for step in range(STEPS):
        word = step * WORDS + tl.arange(0, WORDS)
        # Bits beyond a row are 0 in both: they count as equal, in the product and in the channels below.
        inside_a = (row_a < rows_a)[:, None] & (word < W)[None, :]
        inside_b = (row_b < rows_b)[:, None] & (word < W)[None, :]
        words_a = tl.load(a + row_a.to(tl.int64)[:, None] * W + word[None, :], mask=inside_a, other=0)
        words_b = tl.load(b + row_b.to(tl.int64)[:, None] * W + word[None, :], mask=inside_b, other=0)
        signs_a = signs(words_a, table, tl.int8, WORDS, WIDTH)
        signs_b = signs(words_b, table, tl.int8, WORDS, WIDTH)
        products = tl.dot(signs_a, tl.trans(signs_b), products, out_dtype=tl.int32)
    return (STEPS * WORDS * WIDTH - products) >> 1


@triton.jit
def nearest(
    tokens, m, a, table,
    W: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """For the tokens 2 * a of a passage of m tokens the least distance to one at an odd position 2 * b + 1, and the
    lowest such b. Where there is none, the distance is more than any."""
    far = tl.zeros(a.shape, tl.int32) + (W * WIDTH + 1)
    distance, best = far, tl.zeros(a.shape, tl.int32)
    for first in range(0, m // 2, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        found = distances(tokens, tokens, 2 * a, 2 * column + 1, m, m, table, W, WIDTH, WORDS)
        # One key a pair, so that the least distance wins and then the lowest b.
        key = found * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        key = tl.where((2 * column + 1 < m)[None, :], key, far[:, None] * COLUMNS)
        least = tl.min(key, axis=1)
        closer = least // COLUMNS < distance
        best = tl.where(closer, first + least % COLUMNS, best)
        distance = tl.where(closer, least // COLUMNS, distance)
    return distance, best
