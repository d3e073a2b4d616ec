"""Packed signs as operands of tensor cores: expanded in the registers that the instruction reads them from.

The multiply wants each thread to hold certain rows and channels. Triton moves whole words into that layout and
expands there, but only if everything that the expansion reads comes from memory or is a constant: after a shift by
`tl.arange` it would expand first, and send 16 times the bytes through shared memory. Hence the table of masks.
`tests/gpu/test_machine_code.py` holds this to the machine code.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_tables: dict[torch.device, Tensor] = {}


def masks(device: torch.device) -> Tensor:
    """int32 (32,): 1 << i, which `signs` takes.

    Made once a device, waiting for it then, so that any stream may read it. During graph capture it is made anew:
    memory of a graph is filled only when the graph runs.
    """
    if (table := _tables.get(device)) is not None:
        return table
    table = torch.ones(32, dtype=torch.int32, device=device) << torch.arange(32, dtype=torch.int32, device=device)
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return table
        torch.cuda.current_stream().synchronize()
    return _tables.setdefault(device, table)


def as_words(bits: Tensor) -> Tensor:
    """Contiguous packed rows (rows, w) as int32 (rows, w / 4) where that is possible: fewer, wider loads."""
    rows = bits.contiguous().view(-1, bits.shape[-1])
    aligned = rows.shape[0] > 0 and rows.shape[1] % 4 == 0 and rows.data_ptr() % 4 == 0
    return rows.view(torch.int32) if aligned else rows


@triton.jit
def signs(words, table, dtype: tl.constexpr, WORDS: tl.constexpr, WIDTH: tl.constexpr):
    """Words (..., ROWS, WORDS) of WIDTH bits, and masks (WIDTH,) -> +-1 of a dtype, (..., ROWS, WORDS * WIDTH); two
    dimensions or three."""
    words = words.to(tl.int32)
    if len(words.shape) == 3:
        ones = (words[:, :, :, None] & table[None, None, None, :]) != 0
        ones = tl.reshape(ones, (words.shape[0], words.shape[1], WORDS * WIDTH))
    else:
        ones = (words[:, :, None] & table[None, None, :]) != 0
        ones = tl.reshape(ones, (words.shape[0], WORDS * WIDTH))
    if dtype == tl.float8e4nv:
        return tl.where(ones, 0x38, 0xB8).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    elif dtype.is_int():
        return tl.where(ones, 1, -1).to(dtype)
    else:
        return tl.where(ones, 1.0, -1.0).to(dtype)
