"""Packed signs times a prepared weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .project import project


def unpack_matmul_prepared(
    bits: Tensor,
    data: Tensor,
    factors: Tensor | None,
    precision: str,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
    out: Tensor,
    gated: bool = False,
) -> None:
    project(bits, data.t(), None, factors, bias, token_scale, out, gated)
