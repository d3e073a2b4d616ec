"""Signs of a matrix as bits. Bound by reading x; the bits are 1/8 to 1/32 of that."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two, widened

#: Bytes of x that a program reads: with 4 warps, eight 16-byte loads a thread.
_TILE = 16384


@triton.jit(do_not_specialize=["rows"])
def _pack_bits(x, out, rows, d, w, column_programs, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """x (rows, d) -> out (rows, w), contiguous; a program packs a tile of ROWS x BYTES bytes."""
    program = tl.program_id(0).to(tl.int64)
    column = program % column_programs
    row = (program // column_programs) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = column * (BYTES * 8) + tl.arange(0, BYTES * 8)[None, :]
    inside = (row < rows) & (channel < d)

    value = tl.load(x + row * d + channel, mask=inside)
    # 16-bit floats are widened (exactly): one IEEE comparison then decides -0, NaN and denormals.
    ones = (value != 0) if value.dtype.is_int() else (widened(value) >= 0)
    bits = tl.reshape((ones & inside).to(tl.int32), (ROWS, BYTES, 8)) << tl.arange(0, 8)[None, None, :]

    byte = column * BYTES + tl.arange(0, BYTES)[None, :]
    tl.store(out + row * w + byte, tl.sum(bits, axis=2).to(tl.uint8), mask=(row < rows) & (byte < w))


def pack_bits(x: Tensor, out: Tensor) -> None:
    if out.numel() == 0:
        return
    x = x.contiguous()
    x = x.view(torch.uint8) if x.dtype == torch.bool else x
    d, w = x.shape[-1], out.shape[-1]
    if d % 8 == 0:
        # No pad bits: the matrix is one long row, and no lane is idle whatever d is.
        d, w = x.numel(), out.numel()
    rows = out.numel() // w
    tile = _TILE // (8 * x.element_size())
    columns = min(tile, power_of_two(w))
    column_programs = triton.cdiv(w, columns)
    programs = triton.cdiv(rows, tile // columns) * column_programs
    with on_device(x):
        _pack_bits[(programs,)](
            x, out, rows, d, w, column_programs,
            ROWS=tile // columns, BYTES=columns, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
