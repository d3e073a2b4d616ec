"""Hamming distances between packed tokens: the public functions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import checks
from .ops.direct import calls as ops


class Neighbours(NamedTuple):
    """Result of `hamming_topk`: distances int32 (m, k) and row numbers int64 (m, k)."""

    distances: Tensor
    indices: Tensor


def hamming_distance(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Number of differing bits between every token of a and every token of b.

    Args:
        a: uint8 (..., m, w). All 8 * w channels count: pad bits must be 0, as `pack_bits` leaves them.
        b: uint8 (..., n, w); leading dimensions broadcast with those of a.
        out: where to write, int32 (..., m, n).

    Returns:
        int32 (..., m, n).

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; the message names the argument.

    Example:
        >>> a = torch.tensor([[0b0011]], dtype=torch.uint8)
        >>> hamming_distance(a, torch.tensor([[0b0101], [0b0011]], dtype=torch.uint8))
        tensor([[2, 0]], dtype=torch.int32)
    """
    checks.is_tensor("a", a)
    checks.is_tensor("b", b)
    if out is None:
        return ops.hamming_distance(a, b)
    checks.is_tensor("out", out)
    ops.hamming_distance_out(a, b, out)
    return out


def hamming_topk(a: Tensor, b: Tensor, k: int) -> Neighbours:
    """The k rows of b nearest to each row of a, without the distance matrix in memory on the cpu backend.

    Args:
        a: uint8 (m, w) queries.
        b: uint8 (n, w) database.
        k: how many, 1 <= k <= n.

    Returns:
        Neighbours(distances int32 (m, k), indices int64 (m, k)) by increasing distance, ties to the lowest index.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or k; the message names the argument.

    Example:
        >>> codes = pack_bits(torch.randn(1000, 768))
        >>> hamming_topk(codes[:2], codes, 1).indices.flatten()
        tensor([0, 1])
    """
    checks.is_tensor("a", a)
    checks.is_tensor("b", b)
    checks.is_int("k", k, 1)
    return Neighbours(*ops.hamming_topk(a, b, k))
