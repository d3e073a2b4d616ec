"""The layouts of the projections' CUDA kernels in plain Python: which lane holds which sign, weight and sum.

Lanes are walked one by one over the fragments that the PTX documentation gives for wgmma and mma.sync, and copied boxes
over the swizzle that it gives for tensor maps and matrix descriptors, so that what the kernels assume of them is tested
where there is no GPU. Bits are expanded as in csrc/cuda/expand.cuh, word by word.
"""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from btr_kernels import reference

from .machine_code import nvcc
from .resources import CSRC
from .rows import TILED

LANES = [(lane, lane // 4, lane % 4) for lane in range(32)]
#: btr::DType, and a word of ones in each of the types that are multiplied.
TYPES = {
    torch.bfloat16: (2, 0x3F803F80),
    torch.float16: (1, 0x3C003C00),
    torch.int8: (4, 0),
    torch.float8_e4m3fn: (6, 0),
}
MULTIPLIED = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype)[6:])
_ALL = 0xFFFFFFFF


def values(words: list[int], dtype: torch.dtype) -> list[float]:
    """What is in 32-bit words, the lowest bits first."""
    return torch.from_numpy(np.array(words, np.uint32).view(np.uint8)).view(dtype).float().tolist()


def words_of(row: torch.Tensor) -> list[int]:
    return row.view(torch.uint8).numpy().view(np.uint32).tolist()


def four_signs(zeros: int, dtype: torch.dtype) -> int:
    if dtype == torch.int8:
        return ((zeros & 15) * 0x00204081 & 0x01010101) * 0xFE + 0x01010101
    return ((zeros & 15) * 0x10204080 & 0x80808080) | 0x38383838


def expand_in_order(bits: int, t: int, dtype: torch.dtype) -> list[int]:
    zeros = ~bits & _ALL
    if dtype.itemsize == 1:
        return [four_signs(zeros >> 4 * t, dtype), four_signs(zeros >> (4 * t + 16), dtype)]
    first, second = zeros << (7 - 2 * t) & _ALL, zeros << (6 - 2 * t) & _ALL
    highest = [(first >> 8 * j & 0x80) << 8 | (second >> 8 * j & 0x80) << 24 for j in range(4)]
    return [word | TYPES[dtype][1] for word in highest]


def expand_vector(bits: int, dtype: torch.dtype) -> list[int]:
    zeros = ~bits & _ALL
    if dtype.itemsize == 1:
        return [four_signs(zeros >> 4 * j, dtype) for j in range(4)]
    twice = (zeros & 0xFF) * 0x8001
    return [(twice << (15 - 2 * j) & 0x80008000) | TYPES[dtype][1] for j in range(4)]


def place_in_a(lane: int, i: int, itemsize: int) -> tuple[int, int]:
    """Element i of a lane in the first operand of a warp: 16 rows of 32 bytes."""
    each = 4 // itemsize  # elements of a register
    row = lane // 4 + (8 if i // each % 2 else 0)
    return row, lane % 4 * each + i % each + (16 // itemsize if i >= 2 * each else 0)


def place_in_b(lane: int, i: int, itemsize: int) -> tuple[int, int]:
    """Element i of a lane in the second operand of mma.sync: the column, and the row."""
    each = 4 // itemsize
    return lane // 4, lane % 4 * each + i % each + (16 // itemsize if i >= each else 0)


def place_of_sum(lane: int, i: int) -> tuple[int, int]:
    """Of sum i of a lane: 16 rows of a warp, and the column."""
    return lane // 4 + (8 if i % 4 >= 2 else 0), i // 4 * 8 + lane % 4 * 2 + i % 2


@MULTIPLIED
def test_signs_are_the_first_operand(dtype):
    """Signs::expand: 64 rows of a warp group, a step of 128 bytes of the weight."""
    channels, depth = 128 // dtype.itemsize, 32 // dtype.itemsize
    bits = torch.randint(0, 256, (64, channels // 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = reference.signs(bits, channels)
    found = torch.zeros(64, channels)
    for warp in range(4):
        for lane, g, t in LANES:
            operands = [[0] * 4 for _ in range(4)]  # of a step
            for upper in range(2):
                words = words_of(bits[16 * warp + g + 8 * upper])
                for w, word in enumerate(words):
                    made = expand_in_order(word, t, dtype)
                    for k in range(len(made) // 2):
                        operand = operands[w * len(made) // 2 + k]
                        operand[upper], operand[2 + upper] = made[2 * k], made[2 * k + 1]
            for k, operand in enumerate(operands):
                for i, value in enumerate(values(operand, dtype)):
                    row, column = place_in_a(lane, i, dtype.itemsize)
                    found[16 * warp + row, k * depth + column] = value
    assert torch.equal(found, expected)


@MULTIPLIED
def test_few_tokens_meet_the_channels_of_their_weight(dtype):
    """project_few: the weight by vectors of a lane, the signs in the same order, eight tokens."""
    held = torch.float16 if dtype == torch.float8_e4m3fn else dtype  # as it is multiplied
    generator = torch.Generator().manual_seed(2)
    channels = 64 // dtype.itemsize  # of a step
    weight = torch.randint(-8, 9, (16, 3 * channels), generator=generator).to(dtype)
    bits = torch.randint(0, 256, (8, 3 * channels // 8), dtype=torch.uint8, generator=generator)
    depth, sums = 32 // held.itemsize, torch.zeros(16, 8)
    for step in range(3):
        in_step = slice(step * channels, (step + 1) * channels)
        pairs = channels // 32 if held.itemsize == 2 else 1  # of operands
        a, b = torch.zeros(2 * pairs, 16, depth), torch.zeros(2 * pairs, 8, depth)
        for lane, g, t in LANES:
            own = slice(t * channels // 4, (t + 1) * channels // 4)
            rows = [words_of(weight[g + 8 * upper, in_step][own].to(held).contiguous()) for upper in range(2)]
            of_token = bits[g, step * channels // 8 :][: channels // 8].numpy()
            mine = int.from_bytes(of_token.tobytes(), "little") >> t * channels // 4
            for pair in range(pairs):
                signs = expand_vector(mine >> 8 * pair, held)
                for k in range(2):
                    first, second = 4 * pair + 2 * k, 4 * pair + 2 * k + 1
                    operand = [rows[0][first], rows[1][first], rows[0][second], rows[1][second]]
                    for i, value in enumerate(values(operand, held)):
                        row, column = place_in_a(lane, i, held.itemsize)
                        a[2 * pair + k, row, column] = value
                    for i, value in enumerate(values(signs[2 * k : 2 * k + 2], held)):
                        token, row = place_in_b(lane, i, held.itemsize)
                        b[2 * pair + k, token, row] = value
        sums += torch.einsum("omk,onk->mn", a, b)
    assert torch.equal(sums, weight.float() @ reference.signs(bits, 3 * channels).t())


def swizzled(address: int) -> int:
    """Where tensor maps and descriptors of 128 bytes put what is at an address: bits 4 to 6 change with bits 7 to 9."""
    return address ^ (address >> 7 & 7) << 4


def test_a_copied_box_is_the_second_operand():
    start, rows = 3 * 1024, 64
    tile = torch.randint(0, 256, (rows, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    memory = torch.zeros(start + rows * 128, dtype=torch.uint8)
    for half in range(2):  # two boxes
        at = start + half * rows // 2 * 128
        for r in range(rows // 2):
            for c in range(128):
                memory[swizzled(at + r * 128 + c)] = tile[half * rows // 2 + r, c]
    for k in range(4):
        operand = (start & 0x3FFFF) >> 4 | 1 << 16 | (1024 >> 4) << 32 | 1 << 62  # operand_at
        operand += 32 * k >> 4  # advanced
        assert operand >> 62 == 1, "the swizzle of 128 bytes"
        first, of_eight = (operand & 0x3FFF) << 4, (operand >> 32 & 0x3FFF) << 4
        for n in range(rows):
            for byte in range(32):
                place = first + n // 8 * of_eight + n % 8 * 128 + byte
                assert memory[swizzled(place)] == tile[n, 32 * k + byte]


def vector_at(r: int, v: int) -> int:
    """project_ampere.cuh."""
    return r * 128 + (v ^ r % 8) * 16


def test_loaded_matrices_are_the_second_operand_without_conflicts():
    """multiply_stage: four matrices of 8 rows of 16 bytes each, of two tiles of columns."""
    tile = torch.randint(0, 256, (64, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    memory = torch.zeros(64 * 128, dtype=torch.uint8)
    for r in range(64):
        for v in range(8):
            memory[vector_at(r, v) :][:16] = tile[r, 16 * v : 16 * v + 16]
    for k in range(4):
        for first in range(0, 64, 16):
            rows = [vector_at(first + lane // 16 * 8 + lane % 8, 2 * k + lane // 8 % 2) for lane in range(32)]
            for i in range(4):  # each matrix is read at once
                assert len({address % 128 for address in rows[8 * i : 8 * i + 8]}) == 8, "a bank is met twice"
            for lane, g, t in LANES:
                for i in range(2):
                    loaded = [memory[rows[8 * (2 * i + half) + g] + 4 * t :][:4] for half in range(2)]
                    for byte, value in enumerate(torch.cat(loaded)):
                        column, row = place_in_b(lane, byte, 1)
                        assert value == tile[first + 8 * i + column, 32 * k + row]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("columns", [32, 64, 128])
def test_staged_sums_become_every_result_once(columns, gated):
    """stage_sums and finish_staged: the sums of a warp, by lanes, to rows of results."""
    pitch, made = columns + 4, columns // 2 if gated else columns
    staged = [None] * (16 * pitch)
    for lane, g, t in LANES:
        for i in range(columns // 2):
            # stage_sums: pairs of a tile of 8 columns, those of the second row 8 rows further.
            at = g * pitch + t * 2 + i // 4 * 8 + (8 * pitch if i % 4 >= 2 else 0) + i % 2
            assert staged[at] is None
            staged[at] = place_of_sum(lane, i)
    lanes, found = made // 8, {}
    for lane in range(32):
        at = lane % lanes * 8
        for r in range(lane // lanes, 16, 32 // lanes):
            for i in range(8):
                sources = [staged[r * pitch + at + i]] + ([staged[r * pitch + made + at + i]] if gated else [])
                assert (r, at + i) not in found
                found[r, at + i] = sources
    assert found == {(r, c): [(r, c), (r, made + c)] if gated else [(r, c)] for r in range(16) for c in range(made)}
    if lanes < 4:
        return  # small tiles of gated columns
    for begin in range(0, 32, 8):  # lanes that read 16 bytes at once
        places = [
            lane // lanes * pitch + lane % lanes * 8 + (4 if lanes >= 8 and lane & 4 else 0)
            for lane in range(begin, begin + 8)
        ]
        assert len({place * 4 % 128 for place in places}) == 8, "a bank is met twice"


@pytest.mark.skipif(nvcc() is None, reason="nvcc, whose headers the emulator needs, is not installed")
def test_words_are_those_of_the_kernels(tmp_path):
    """csrc/cuda/expand.cuh itself, compiled for the CPU."""
    source, library = tmp_path / "words.cpp", tmp_path / "words.so"
    cases = "".join(
        f"  if (type == {n}) in_order ? run<{n}>(bits, t, out) : expand_vector<DType({n})>(bits, *four);\n"
        for n, _ in TYPES.values()
    )
    source.write_text(
        '#include "cuda/expand.cuh"\nusing namespace btr;\nusing namespace btr::cuda;\n'
        "template <int kType> void run(uint32_t bits, int t, uint32_t* out) {\n"
        "  uint32_t words[kWordsOf32<DType(kType)>];\n  expand_in_order<DType(kType)>(bits, t, words);\n"
        "  for (uint32_t word : words) *out++ = word;\n}\n"
        'extern "C" void words(int type, int in_order, uint32_t bits, int t, uint32_t* out) {\n'
        f"  auto* four = reinterpret_cast<uint32_t(*)[4]>(out);\n{cases}}}\n"
    )
    emulator = Path(__file__).parent / "emulator"
    flags = "-fPIC,-include,cuda/launch.cuh"
    command = [nvcc(), "-x", "c++", "-std=c++17", "-cudart", "none", "-shared", "-Xcompiler", flags]
    command += ["-I", str(emulator), "-I", str(CSRC), str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    words = ctypes.CDLL(str(library)).words
    out = (ctypes.c_uint32 * 4)()
    for dtype, (number, _) in TYPES.items():
        for bits in (0, _ALL, 1, 0x80000000, 0x12345678, 0xDEADBEEF, 0x0F0F33AA):
            for t in range(4):
                expected = expand_in_order(bits, t, dtype)
                words(number, 1, ctypes.c_uint32(bits), t, out)
                assert list(out)[: len(expected)] == expected
            words(number, 0, ctypes.c_uint32(bits), 0, out)
            assert list(out) == expand_vector(bits, dtype)


@pytest.mark.parametrize("processors", [114, 120, 132])
def test_cases_get_the_tiles_that_they_are_named_after(processors):
    """`cost` of csrc/cuda/tiles.cuh in Python, with the tiles that stand there."""
    source = (CSRC / "cuda" / "tiles.cuh").read_text()
    tiles = {
        name.lower(): [int(v) for v in values.split(",")]
        for name, values in re.findall(r"using (\w+)Tile = Tile<(.*?)>", source)
    }

    def cost(tile, m, n):
        consumers, sets, columns, resident, rate = tile
        tokens = 64 * consumers * sets
        count = math.ceil(m / tokens) * math.ceil(n / columns)
        return math.ceil(count / (processors * resident)) * resident * tokens * columns / rate, count

    assert list(tiles) == ["large", "middle", "small"]
    for name in tiles:
        m, n, _ = TILED[f"{name} tiles"]
        assert min(tiles, key=lambda tile: cost(tiles[tile], m, n)[0]) == name
    # Some blocks have a second one.
    assert cost(tiles["large"], *TILED["large tiles"][:2])[1] > processors
