"""The layouts of csrc/cuda/binary_tile.cuh in plain Python: which lane holds which word and which count.

Lanes are walked one by one over the fragments that the PTX documentation gives for mma.m16n8k256 with .b1, so that what
the kernel assumes of them is tested where there is no GPU.
"""

from __future__ import annotations

import pytest
import torch

from btr_kernels import reference

#: As in binary_tile.cuh: rows of a tile, of a warp's part of a and of b.
TILE, ROWS, COLUMNS = 64, 16, 32
LANES = [(lane, lane // 4, lane % 4) for lane in range(32)]


def words(bits: torch.Tensor) -> list[list[int]]:
    """Rows of packed bytes as rows of 32-bit integers, padded to steps of 256 bits."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 32)).long().view(len(bits), -1, 4)
    return (padded << torch.tensor([0, 8, 16, 24])).sum(-1).tolist()


def multiply(a: list[list[int]], b: list[list[int]], c: list[list[int]]) -> None:
    """mma.m16n8k256 .and.popc: a, b, c hold the registers of every lane. Element by element, as documented."""
    matrix_a, matrix_b = [[0] * 256 for _ in range(16)], [[0] * 256 for _ in range(8)]
    for lane, group, in_group in LANES:
        for i in range(128):
            row = group if i < 32 or 64 <= i < 96 else group + 8
            column = in_group * 32 + (i & 31) + (128 if i >= 64 else 0)
            matrix_a[row][column] = a[lane][i // 32] >> (i % 32) & 1
        for i in range(64):
            matrix_b[group][in_group * 32 + (i & 31) + (128 if i >= 32 else 0)] = b[lane][i // 32] >> (i % 32) & 1
    as_int = [[int("".join(map(str, row)), 2) for row in matrix] for matrix in (matrix_a, matrix_b)]
    for lane, group, in_group in LANES:
        for i in range(4):
            row, column = group + (0 if i < 2 else 8), in_group * 2 + (i & 1)
            c[lane][i] += (as_int[0][row] & as_int[1][column]).bit_count()


def place_of_b(i: int) -> int:
    """Counts::place_of_b."""
    return (i & ~15) + i % 4 // 2 * 8 + i % 16 // 4 * 2 + i % 2


def warp_distances(a: torch.Tensor, b: torch.Tensor, warp: int, out: torch.Tensor) -> None:
    """What one warp of hamming_tiles writes."""
    words_a, words_b = words(a), words(b)
    staged_b = [[]] * TILE
    for i, row in enumerate(words_b):
        staged_b[place_of_b(i)] = row
    first_row, first_column = warp % 4 * ROWS, warp // 4 * COLUMNS
    counts = [[[0] * 4 for _ in range(32)] for _ in range(4)]
    for step in range(len(words_a[0]) // 8):
        # A lane reads 8 bytes of a row: words 2 t and 2 t + 1 of the step stand for words t and t + 4.
        def pair(rows: list[list[int]], row: int, in_group: int, step: int = step) -> list[int]:
            return rows[row][8 * step + 2 * in_group : 8 * step + 2 * in_group + 2]

        registers_a = []
        for _, group, t in LANES:
            low, high = pair(words_a, first_row + group, t), pair(words_a, first_row + group + 8, t)
            registers_a.append([low[0], high[0], low[1], high[1]])
        for j in range(4):
            registers_b = [pair(staged_b, first_column + 8 * j + group, t) for _, group, t in LANES]
            multiply(registers_a, registers_b, counts[j])
    ones_a, ones_b = (reference.bits.counts(rows).tolist() for rows in (a, b))
    for lane, lane_group, t in LANES:
        for half in range(2):
            row = first_row + half * 8 + lane_group
            for group in range(2):
                for i in range(4):
                    column = first_column + group * 16 + t * 4 + i
                    common = counts[2 * group + i // 2][lane][2 * half + i % 2]
                    assert out[row, column] == -1, "written twice"
                    out[row, column] = ones_a[row] + ones_b[column] - 2 * common


@pytest.mark.parametrize("w", [32, 96])
def test_the_warps_of_a_block_write_all_distances_of_a_tile(w):
    generator = torch.Generator().manual_seed(w)
    a, b = (torch.randint(256, (TILE, w), generator=generator, dtype=torch.uint8) for _ in range(2))
    out = torch.full((TILE, TILE), -1, dtype=torch.int32)
    for warp in range(8):
        warp_distances(a, b, warp, out)
    assert torch.equal(out, reference.hamming_distance(a, b))


def test_rows_of_b_take_every_place_once():
    assert sorted(map(place_of_b, range(TILE))) == list(range(TILE))


def test_reads_of_half_a_warp_fall_on_different_banks():
    """8 bytes each of four rows by four lanes, at the pitch of 160 bytes: 32 banks of 4 bytes."""
    for first in (0, 4):
        touched = [
            (160 * row + 8 * t + byte) // 4 % 32 for row in range(first, first + 4) for t in range(4) for byte in (0, 4)
        ]
        assert sorted(touched) == list(range(32))
