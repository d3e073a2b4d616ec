"""Packed signs times a weight as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from .project import project


def unpack_matmul(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
    out: Tensor,
    gated: bool = False,
) -> None:
    project(bits, weight, scale, None, bias, token_scale, out, gated)
