"""Packed signs back to floats. Bound by writing out, which is 16 to 32 times the size of the bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, power_of_two, rounded, widened

#: Bytes of out that a program writes: with 4 warps, eight 16-byte stores a thread.
_TILE = 16384
#: Tiles are no narrower than this many bytes of bits, so that a row's segment fills whole 128-byte lines of out.
_NARROWEST = 16


@triton.jit(do_not_specialize=["rows"])
def _unpack_bits(
    bits, scale, bias, token_scale, out, copy, rows, d, w, column_programs, ROWS: tl.constexpr, BYTES: tl.constexpr
):
    """bits (rows, w) -> out (rows, d), contiguous, and copy (rows, w); a program expands a tile of ROWS x BYTES bytes.

    Absent vectors are None. Without fused multiply-adds (a launch option) results equal the reference's to the bit.
    """
    program = tl.program_id(0).to(tl.int64)
    row = (program // column_programs) * ROWS + tl.arange(0, ROWS)[:, None]
    first = (program % column_programs) * BYTES
    byte = first + tl.arange(0, BYTES)[None, :]
    # Each array is loaded in its own two dimensions and then given the third: Triton then moves bytes and vectors
    # between threads, where from three dimensions it would move all the results.
    channel = (first + tl.arange(0, BYTES)[:, None]) * 8 + tl.arange(0, 8)[None, :]

    there = (row < rows) & (byte < w)
    loaded = tl.load(bits + row * w + byte, mask=there, other=0)
    if copy is not None:
        tl.store(copy + row * w + byte, loaded, mask=there)
    packed = loaded.to(tl.int32)
    ones = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    value = tl.where(ones != 0, 1.0, -1.0)
    if scale is not None:
        value *= widened(tl.load(scale + channel, mask=channel < d, other=0))[None, :, :]
    if token_scale is not None:
        value *= widened(tl.load(token_scale + row, mask=row < rows, other=0))[:, :, None]
    if bias is not None:
        value += widened(tl.load(bias + channel, mask=channel < d, other=0))[None, :, :]
    inside = (row < rows)[:, :, None] & (channel < d)[None, :, :]
    tl.store(out + row[:, :, None] * d + channel[None, :, :], rounded(value, out.dtype.element_ty), mask=inside)


def unpack_bits(
    bits: Tensor,
    d: int,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    dtype: torch.dtype,
    out: Tensor,
) -> None:
    expand(bits, d, scale, bias, token_scale, out, None)


def expand(
    bits: Tensor,
    d: int,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out: Tensor,
    copy: Tensor | None,
) -> None:
    """`unpack_bits`, and the bits themselves into `copy` unless it is None. They may lie in pinned host memory."""
    if out.numel() == 0:
        return
    bits = bits.contiguous()
    scale, bias, token_scale = (None if v is None else v.contiguous() for v in (scale, bias, token_scale))
    w = bits.shape[-1]
    rows = bits.numel() // w
    tile = _TILE // (8 * out.element_size())
    # The largest power of two that divides w leaves no lane idle; if it is small, lanes past the end of a row are.
    exact = w & -w
    columns = min(tile, exact if exact >= _NARROWEST else power_of_two(w))
    column_programs = triton.cdiv(w, columns)
    programs = triton.cdiv(rows, tile // columns) * column_programs
    with on_device(out):
        _unpack_bits[(programs,)](
            bits, scale, bias, token_scale, out, copy, rows, d, w, column_programs,
            ROWS=tile // columns, BYTES=columns, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
