"""The nearest rows: distances with their indices in one integer, of which torch selects the least.

Keys are unique, so whatever the selection does with ties, the lowest index wins. Bound by writing and reading keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .hamming_distance import distances_to

#: Keys in memory at a time.
_KEYS = 1 << 26


def hamming_topk(a: Tensor, b: Tensor, k: int, distances: Tensor, indices: Tensor) -> None:
    if distances.numel() == 0:
        return
    n, w = b.shape
    fits = (8 * w + 1) * n < 2**31
    rows = max(1, _KEYS // n)
    for part, found, where in zip(a.split(rows), distances.split(rows), indices.split(rows), strict=True):
        keys = torch.empty((part.shape[0], n), dtype=torch.int32 if fits else torch.int64, device=a.device)
        distances_to(part, b, keys, n)
        least = keys.topk(k, dim=1, largest=False, sorted=True).values
        found.copy_(least // n)
        where.copy_(least % n)
