"""Gradients of scale * sign(norm(x)). Bound by reading x and the gradient, and writing that of x."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two, rounded, widened
from .norms import WIDEST, load_part, statistics

#: Values that a program holds: with 4 warps, 16 of x and 16 of the gradient a thread.
_TILE = 2048
#: Tiles of rows of a program, which adds up what they give for the scale: the sums to add in the end are fewer.
_TILES = 8


@triton.jit
def _normalised(x, row, rows, channel, d, factor, mean, size, NORM: tl.constexpr):
    value = load_part(x, row, rows, channel, d)
    if NORM == "layer":
        value = (value * factor[:, None] - mean[:, None]) / factor[:, None]
    sign = tl.where(value >= 0, 1.0, -1.0)
    if NORM != "none":
        value = value / size[:, None]
    return value, sign


@triton.jit
def _through(grad_out, scale, n, row, rows, channel, d, limit, GRAD: tl.constexpr):
    """The gradient in n = norm(x), 0 outside of (rows, d)."""
    g = load_part(grad_out, row, rows, channel, d)
    scaled = g * widened(tl.load(scale + channel, mask=channel < d, other=0))[None, :]
    if GRAD == "ste":
        slope = tl.where(tl.abs(n) <= limit, 1.0, 0.0)
    else:
        # 1 - tanh(z)**2 = 4 exp(-2 abs(z)) / (1 + exp(-2 abs(z)))**2, without cancellation.
        e = tl.exp(-2.0 * tl.abs(limit * n))
        slope = limit * 4.0 * e / ((1.0 + e) * (1.0 + e))
    inside = (row < rows)[:, None] & (channel < d)[None, :]
    return tl.where(inside, scaled * slope, 0.0), g


@triton.jit(do_not_specialize=["rows", "eps", "limit"])
def _sign_scale_backward(
    grad_out, x, scale, grad_x, sums, rows, d, eps, limit,
    NORM: tl.constexpr, GRAD: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """grad_x (rows, d), and sums (programs, d) whose sum over programs is the gradient of the scale."""
    program = tl.program_id(0).to(tl.int64)
    for chunk in range(CHUNKS):
        channel = chunk * CHANNELS + tl.arange(0, CHANNELS)
        total = tl.zeros((CHANNELS,), tl.float32)
        for tile in range(TILES):
            row = (program * TILES + tile) * ROWS + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & (channel < d)[None, :]
            factor, mean, size = statistics(x, row, rows, d, eps, NORM, NORM != "none", CHUNKS, CHANNELS)
            along = tl.zeros((ROWS,), tl.float32)
            shared = tl.zeros((ROWS,), tl.float32)
            if NORM != "none":
                for other in range(CHUNKS):
                    k = other * CHANNELS + tl.arange(0, CHANNELS)
                    n, _ = _normalised(x, row, rows, k, d, factor, mean, size, NORM)
                    h, _ = _through(grad_out, scale, n, row, rows, k, d, limit, GRAD)
                    along += tl.sum(tl.where((k < d)[None, :], h * n, 0.0), axis=1)
                    shared += tl.sum(h, axis=1)
                along = along / d
                shared = shared / d
            n, sign = _normalised(x, row, rows, channel, d, factor, mean, size, NORM)
            h, g = _through(grad_out, scale, n, row, rows, channel, d, limit, GRAD)
            if NORM != "none":
                h = h - n * along[:, None]
                if NORM == "layer":
                    h = h - shared[:, None]
                h = h / size[:, None]
            total += tl.sum(tl.where(inside, g * sign, 0.0), axis=0)
            place = row.to(tl.int64)[:, None] * d + channel[None, :]
            tl.store(grad_x + place, rounded(h, grad_x.dtype.element_ty), mask=inside)
        tl.store(sums + program * d + channel, total, mask=channel < d)


def sign_scale_backward(
    grad_out: Tensor,
    x: Tensor,
    scale: Tensor,
    norm: str,
    eps: float,
    grad: str,
    limit: float,
    grad_x: Tensor,
    grad_scale: Tensor,
) -> None:
    if x.numel() == 0:
        grad_scale.zero_()
        return
    grad_out, x, scale = grad_out.contiguous(), x.contiguous(), scale.contiguous()
    d = x.shape[-1]
    rows = x.numel() // d
    channels = min(power_of_two(d), WIDEST)
    tile = max(1, _TILE // channels)
    programs = triton.cdiv(rows, tile * _TILES)
    with on_device(x):
        sums = torch.empty((programs, d), dtype=torch.float32, device=x.device)
        _sign_scale_backward[(programs,)](
            grad_out, x, scale, grad_x, sums, rows, d, eps, limit,
            NORM=norm, GRAD=grad, CHUNKS=triton.cdiv(d, channels), ROWS=tile, TILES=_TILES, CHANNELS=channels,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        grad_scale.copy_(sums.sum(0))
