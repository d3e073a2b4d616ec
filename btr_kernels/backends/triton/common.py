"""What the Triton kernels share: the device they launch on, tile sizes and conversions of floats."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Whether kernels run in Triton's interpreter (on NumPy) rather than on a GPU.
INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device and its current stream: this makes the tensor's device the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def power_of_two(n: int) -> int:
    """The least power of two >= n, for n >= 1."""
    return 1 << (n - 1).bit_length()


@triton.jit
def widened(value):
    """A float of any supported dtype -> float32, exactly. The interpreter gets bfloat16 denormals wrong."""
    if INTERPRET and value.dtype == tl.bfloat16:
        result = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        result = value.to(tl.float32)
    return result


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """float32 -> dtype, rounded to nearest even.

    The interpreter truncates to bfloat16, so there the rounding is done on the bits; NaN becomes the quiet NaN.
    """
    if INTERPRET and dtype == tl.bfloat16:
        u = value.to(tl.uint32, bitcast=True)
        u = tl.where(value == value, (u + 0x7FFF + ((u >> 16) & 1)) >> 16, 0x7FC0)
        result = u.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(dtype)
    return result
