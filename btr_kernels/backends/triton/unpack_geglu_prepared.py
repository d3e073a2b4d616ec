"""Both projections of a gated feed-forward and the product of the two, for a prepared weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .project import project


def unpack_geglu_prepared(
    bits: Tensor,
    data: Tensor,
    factors: Tensor | None,
    precision: str,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype,
    out: Tensor,
) -> None:
    project(bits, data.t(), None, factors, bias, token_scale, out, gated=True)
