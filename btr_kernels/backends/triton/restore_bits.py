"""Packed bits brought to the device and expanded, in one pass. Bound by reading them over the bus, or by writing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pinned import hold, readable
from .unpack_bits import expand


def restore_bits(scale: Tensor, bits: Tensor, dtype: torch.dtype, copy: Tensor, states: Tensor) -> None:
    bits = readable(bits, scale.device)
    expand(bits, scale.shape[0], scale, None, None, states, copy)
    hold(bits, scale.device)
