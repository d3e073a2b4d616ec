"""All pairs of Hamming distances. Bound by writing them, by the tensor cores, or for few rows of a by reading b.

For few rows expanding b for the tensor cores would take longer than counting bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import INTERPRET, on_device, power_of_two
from .expand import as_words, masks
from .nearest import distances

#: On Hopper GPUs tiles of 64 rows and more read the expanded columns from shared memory, smaller ones from registers.
_TILES = {
    90: (
        {"BM": 32, "BN": 128, "BITS": 128, "num_warps": 4, "num_stages": 3},
        {"BM": 128, "BN": 128, "BITS": 128, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 64, "BITS": 256, "num_warps": 2, "num_stages": 2},
    ),
    80: (
        {"BM": 128, "BN": 128, "BITS": 128, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 128, "BITS": 128, "num_warps": 4, "num_stages": 3},
        {"BM": 64, "BN": 64, "BITS": 256, "num_warps": 4, "num_stages": 2},
    ),
    0: ({"BM": 64, "BN": 64, "BITS": 1024, "num_warps": 4, "num_stages": 1},),
}


@triton.jit(do_not_specialize=["m"])
def _hamming_distance(
    a, b, table, out, m, n, stride_a, stride_b, index_factor,
    W: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """a (batch, m, W), b (batch, n, W) words, batches `stride` words apart -> out (batch, m, n); distance *
    index_factor + column, to sort by, unless index_factor is None."""
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    program = tl.program_id(0).to(tl.int64)
    batch = program // (tiles_m * tiles_n)
    tile = program % (tiles_m * tiles_n)
    row = (tile // tiles_n) * BM + tl.arange(0, BM)
    column = (tile % tiles_n) * BN + tl.arange(0, BN)
    mask_table = tl.load(table + tl.arange(0, WIDTH))
    result = distances(a + batch * stride_a, b + batch * stride_b, row, column, m, n, mask_table, W, WIDTH, WORDS)
    if index_factor is not None:
        result = result.to(out.dtype.element_ty) * index_factor + column[None, :].to(out.dtype.element_ty)
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(out + batch * m * n + row[:, None] * n + column[None, :], result, mask=inside)


#: Rows of a up to which bits are counted; words of b that a program holds, and of a row that it reads at a time.
_FEW, _TILE, _WIDEST = 8, 4096, 256


@triton.jit
def _popcount(x):
    """The interpreter has no instruction for it."""
    if INTERPRET:
        x = x.to(tl.uint32, bitcast=True)
        x = x - ((x >> 1) & 0x55555555)
        x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
        x = (x + (x >> 4)) & 0x0F0F0F0F
        return ((x * 0x01010101) >> 24).to(tl.int32)
    else:
        return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _few_rows(
    a, b, out, n, stride_a, stride_b, index_factor,
    M: tl.constexpr, W: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """As `_hamming_distance` for M rows of a; a program does ROWS rows of b."""
    blocks = tl.cdiv(n, ROWS)
    program = tl.program_id(0).to(tl.int64)
    batch = program // blocks
    column = (program % blocks) * ROWS + tl.arange(0, ROWS)
    for i in range(M):
        count = tl.zeros((ROWS,), tl.int32)
        for first in range(0, W, WORDS):
            word = first + tl.arange(0, WORDS)
            inside = (column < n)[:, None] & (word < W)[None, :]
            words_b = tl.load(b + batch * stride_b + column[:, None] * W + word[None, :], mask=inside, other=0)
            words_a = tl.load(a + batch * stride_a + i * W + word, mask=word < W, other=0)
            count += tl.sum(_popcount(words_b.to(tl.int32) ^ words_a.to(tl.int32)[None, :]), axis=1)
        result = count.to(out.dtype.element_ty)
        if index_factor is not None:
            result = result * index_factor + column.to(out.dtype.element_ty)
        tl.store(out + (batch * M + i) * n + column, result, mask=column < n)


def distances_to(a: Tensor, b: Tensor, out: Tensor, index_factor: int | None = None) -> None:
    """a (..., m, w), b (..., n, w) -> out (..., m, n), with the index of b below the distance if asked for."""
    if out.numel() == 0:
        return
    *batch, m, n = out.shape
    words_a, words_b = as_words(a), as_words(b)
    if words_a.dtype != words_b.dtype:  # one of them starts at an odd address
        words_a, words_b = words_a.view(a.dtype), words_b.view(b.dtype)
    width, w = 8 * words_a.element_size(), words_a.shape[1]
    # No copy unless several leading dimensions broadcast differently.
    words_a = words_a.view(*a.shape[:-1], w).expand(*batch, m, w).reshape(-1, m, w)
    words_b = words_b.view(*b.shape[:-1], w).expand(*batch, n, w).reshape(-1, n, w)
    with on_device(a):
        if m <= _FEW:
            read = min(power_of_two(w), _WIDEST)
            rows = _TILE // read
            _few_rows[(words_a.shape[0] * triton.cdiv(n, rows),)](
                words_a, words_b, out, n, words_a.stride(0), words_b.stride(0), index_factor,
                M=m, W=w, WORDS=read, ROWS=rows, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
            return
        table = masks(a.device)

        def launch(BM: int, BN: int, BITS: int, num_warps: int, num_stages: int) -> None:
            grid = words_a.shape[0] * triton.cdiv(m, BM) * triton.cdiv(n, BN)
            _hamming_distance[(grid,)](
                words_a, words_b, table, out, m, n, words_a.stride(0), words_b.stride(0), index_factor,
                W=w, WIDTH=width, WORDS=BITS // width, BM=BM, BN=BN, num_warps=num_warps, num_stages=num_stages,
                enable_fp_fusion=False,
            )  # fmt: skip

        configs = list(tuning.for_device(_TILES, a.device))
        if m < configs[0]["BM"]:
            configs = [{**config, "BM": max(16, power_of_two(m))} for config in configs]
        key = (power_of_two(m), power_of_two(n), w * width, out.dtype)
        tuning.run("hamming_distance", configs, key, launch, a.device)


def hamming_distance(a: Tensor, b: Tensor, out: Tensor) -> None:
    distances_to(a, b, out)
