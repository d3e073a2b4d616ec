"""Definition of Hamming distances between packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import signs


def hamming_distance(a: Tensor, b: Tensor) -> Tensor:
    """Number of differing bits, int32 (..., m, n): (d - <a, b>) / 2 over +-1, the fastest form in plain PyTorch."""
    d = 8 * a.shape[-1]
    # Products of +-1 vectors are integers of at most d: exact in float32 below 2**24.
    dtype = torch.float32 if d < 1 << 24 else torch.float64
    products = signs(a, d, dtype) @ signs(b, d, dtype).transpose(-1, -2)
    return ((d - products) / 2).to(torch.int32)


def hamming_topk(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of b for each row of a by increasing distance, ties to the lowest index."""
    distances, indices = hamming_distance(a, b).sort(dim=-1, stable=True)
    return distances[..., :k].contiguous(), indices[..., :k].contiguous()
