"""Schemas, checks and fakes of Hamming distances."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from .define import Result, define

_MOST_BYTES = 2**28


def _same_bytes(a: Tensor, b: Tensor) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"b: expected {a.shape[-1]} bytes a token, as a has, got shape {tuple(b.shape)}")
    if a.shape[-1] >= _MOST_BYTES:
        raise ValueError(f"a: expected less than 2**28 bytes a token, whose distances fit int32, got {tuple(a.shape)}")
    checks.on_device("b", b, a.device)


def _hamming_distance(a: Tensor, b: Tensor) -> list[Result]:
    checks.packed("a", a, 2, "(..., m, w)")
    checks.packed("b", b, 2, "(..., n, w)")
    _same_bytes(a, b)
    try:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"b: expected leading dimensions that broadcast with those of a {tuple(a.shape)}, got {tuple(b.shape)}"
        ) from None
    return [Result((*batch, a.shape[-2], b.shape[-2]), torch.int32)]


define("hamming_distance", "Tensor a, Tensor b", _hamming_distance, out=True)


def _hamming_topk(a: Tensor, b: Tensor, k: int) -> list[Result]:
    checks.packed("a", a, 2, "(m, w)")
    checks.packed("b", b, 2, "(n, w)")
    checks.has_dims("a", a, 2, "(m, w)")
    checks.has_dims("b", b, 2, "(n, w)")
    _same_bytes(a, b)
    checks.is_int("k", k, 1)
    if k > b.shape[0]:
        raise ValueError(f"k: expected at most the {b.shape[0]} rows of b, got {k}")
    shape = (a.shape[0], k)
    return [Result(shape, torch.int32), Result(shape, torch.int64)]


define("hamming_topk", "Tensor a, Tensor b, SymInt k", _hamming_topk, results=2)
