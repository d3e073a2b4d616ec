"""Normalised signs as bits and the magnitude they leave out, in one pass. Bound by reading x."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two
from .norms import WIDEST, load_part, statistics
from .pack_bits import pack_bits

#: Values that a program holds: with 4 warps, 16 a thread.
_TILE = 2048


@triton.jit(do_not_specialize=["rows", "eps"])
def _binarize(
    x, bits, magnitude, rows, d, w, eps,
    NORM: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """x (rows, d) -> bits (rows, w) and, unless None, magnitude (rows,); a program does ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    factor, mean, size = statistics(x, row, rows, d, eps, NORM, magnitude is not None, CHUNKS, BYTES * 8)
    for chunk in range(CHUNKS):
        channel = chunk * (BYTES * 8) + tl.arange(0, BYTES * 8)
        value = load_part(x, row, rows, channel, d)
        if NORM == "layer":
            value = value * factor[:, None] - mean[:, None]
        ones = ((value >= 0) & (channel < d)[None, :]).to(tl.int32)
        packed = tl.sum(tl.reshape(ones, (ROWS, BYTES, 8)) << tl.arange(0, 8)[None, None, :], axis=2)
        byte = chunk * BYTES + tl.arange(0, BYTES)
        inside = (row < rows)[:, None] & (byte < w)[None, :]
        tl.store(bits + row[:, None] * w + byte[None, :], packed.to(tl.uint8), mask=inside)
    if magnitude is not None:  # last: after a store the rows would be loaded again
        tl.store(magnitude + row, size, mask=row < rows)


def binarize(x: Tensor, norm: str, eps: float, magnitude: bool, bits: Tensor, size: Tensor) -> None:
    if bits.numel() == 0:
        return
    if norm != "layer" and not magnitude:  # the other norms do not change signs
        pack_bits(x, bits)
        return
    x = x.contiguous()
    d, w = x.shape[-1], bits.shape[-1]
    rows = bits.numel() // w
    columns = min(power_of_two(w), WIDEST // 8)
    tile = max(1, _TILE // (8 * columns))
    with on_device(x):
        _binarize[(triton.cdiv(rows, tile),)](
            x, bits, size if magnitude else None, rows, d, w, eps,
            NORM=norm, CHUNKS=triton.cdiv(w, columns), ROWS=tile, BYTES=columns, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
