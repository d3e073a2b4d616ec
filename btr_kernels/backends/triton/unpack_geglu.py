"""Both projections of a gated feed-forward and the product of the two, for a weight as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from .project import project


def unpack_geglu(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
    out: Tensor,
) -> None:
    project(bits, weight, scale, None, bias, token_scale, out, gated=True)
