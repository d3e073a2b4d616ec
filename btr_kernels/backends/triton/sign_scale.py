"""scale * sign(norm(x)), the training form of binarization. Bound by reading x and writing the result."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two, rounded, widened
from .norms import WIDEST, load_part, statistics

#: Values that a program holds: with 4 warps, 32 a thread.
_TILE = 4096


@triton.jit(do_not_specialize=["rows"])
def _sign_scale(
    x, scale, out, rows, d, NORM: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """x (rows, d) -> out (rows, d); a program does ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if NORM == "layer":
        factor, mean, _ = statistics(x, row, rows, d, 0.0, NORM, False, CHUNKS, CHANNELS)
    for chunk in range(CHUNKS):
        channel = chunk * CHANNELS + tl.arange(0, CHANNELS)
        value = load_part(x, row, rows, channel, d)
        if NORM == "layer":
            value = value * factor[:, None] - mean[:, None]
        one = widened(tl.load(scale + channel, mask=channel < d, other=0))[None, :]
        inside = (row < rows)[:, None] & (channel < d)[None, :]
        result = rounded(tl.where(value >= 0, one, -one), out.dtype.element_ty)
        tl.store(out + row[:, None] * d + channel[None, :], result, mask=inside)


def sign_scale(x: Tensor, scale: Tensor, norm: str, eps: float, grad: str, limit: float, out: Tensor) -> None:
    if out.numel() == 0:
        return
    x, scale = x.contiguous(), scale.contiguous()
    d = x.shape[-1]
    rows = x.numel() // d
    channels = min(power_of_two(d), WIDEST)
    tile = max(1, _TILE // channels)
    with on_device(x):
        _sign_scale[(triton.cdiv(rows, tile),)](
            x, scale, out, rows, d,
            NORM=norm, CHUNKS=triton.cdiv(d, channels), ROWS=tile, CHANNELS=channels,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
