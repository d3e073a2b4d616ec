"""What normalising a tile of rows takes: its values in registers, scaled so that no square overflows."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import widened

#: Channels of a row that a program holds in registers, 32 a thread with 4 warps; wider rows are read again for every
#: pass.
WIDEST = 4096


@triton.jit
def load_part(x, row, rows, channel, d):
    """float32 tile, 0 outside of (rows, d)."""
    inside = (row < rows)[:, None] & (channel < d)[None, :]
    return widened(tl.load(x + row.to(tl.int64)[:, None] * d + channel[None, :], mask=inside, other=0))


@triton.jit
def _power_of_two_over(largest):
    """1 / 2**e for 2**e about `largest`, exactly; infinity and NaN count as the largest finite number."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    return ((254 - tl.minimum(exponent, 253)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def statistics(
    x, row, rows, d, eps, NORM: tl.constexpr, SIZE: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Per row: a power of two to multiply x by, the mean of that product (0 unless NORM is "layer"), and, where SIZE,
    what the norm divides x by: sqrt(mean of squares + eps)."""
    largest = tl.zeros(row.shape, tl.float32)
    for chunk in range(CHUNKS):
        value = load_part(x, row, rows, chunk * CHANNELS + tl.arange(0, CHANNELS), d)
        largest = tl.maximum(largest, tl.max(tl.abs(value), axis=1))
    factor = _power_of_two_over(largest)

    mean = tl.zeros(row.shape, tl.float32)
    if NORM == "layer":
        for chunk in range(CHUNKS):
            value = load_part(x, row, rows, chunk * CHANNELS + tl.arange(0, CHANNELS), d)
            mean += tl.sum(value * factor[:, None], axis=1)
        mean = mean / d

    size = tl.zeros(row.shape, tl.float32)
    if SIZE:
        squares = tl.zeros(row.shape, tl.float32)
        for chunk in range(CHUNKS):
            channel = chunk * CHANNELS + tl.arange(0, CHANNELS)
            value = load_part(x, row, rows, channel, d) * factor[:, None] - mean[:, None]
            squares += tl.sum(tl.where((channel < d)[None, :], value * value, 0.0), axis=1)
        # A few operations a row in float64, where the square of the factor does not overflow.
        scale = factor.to(tl.float64)
        size = tl.sqrt(squares.to(tl.float64) / d / (scale * scale) + eps).to(tl.float32)
    return factor, mean, size
