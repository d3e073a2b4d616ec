"""Matching and merging of similar tokens: the public functions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .ops.direct import calls as ops


class MergePlan(NamedTuple):
    """Where `match_tokens` sends every token.

    Attributes:
        slot: int32 (B, n), or (total,) for packed passages: the row of the passage's result that the token goes
            to, counted from 0 in its passage; -1 for padding.
        lengths: int32 (B,), the number of tokens left in each passage.
        max_len: rows that a padded result has; no passage has more tokens left.
        cu_seqlens: packed passages only: int32 (B + 1,), the offsets of the passages in the packed result.
        cu_seqlens_in: packed passages only: the offsets that the passages had before, as given.
        max_total: packed passages only: rows that a packed result has. On the CPU it is `cu_seqlens[-1]`; on a GPU
            and under torch.compile it is the least bound known without reading tensors (rows at and after
            `cu_seqlens[-1]` are then 0 with size 0).
    """

    slot: Tensor
    lengths: Tensor
    max_len: int
    cu_seqlens: Tensor | None = None
    cu_seqlens_in: Tensor | None = None
    max_total: int | None = None


def match_tokens(
    bits: Tensor,
    keep: int | float | Tensor,
    lengths: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> MergePlan:
    """Bipartite soft matching of each passage's tokens by Hamming distance, down to `keep` tokens.

    A is the tokens at even positions, B those at odd positions of the unpadded passage. Each a takes the b at the
    least distance (ties to the lowest b). A round on m tokens merges the min(m - keep, ceil(m / 2)) pairs of least
    distance (ties to the lowest a); a merged token stands where its b stood and survivors keep their order. While
    more than keep are left another round runs on `merge_bits` of the plan so far.

    Args:
        bits: uint8 (B, n, w), or (total, w) with `cu_seqlens`. All 8 * w channels count: pad bits must be 0.
        keep: tokens to keep in each passage: an int >= 1; a float in (0, 1], meaning ceil(keep * length); or an
            integer tensor (B,). A passage no longer than its keep is unchanged.
        lengths: int32 or int64 (B,), the tokens in each passage; None for n.
        cu_seqlens: int32 or int64 (B + 1,): passages are rows cu_seqlens[i] to cu_seqlens[i + 1] of packed bits.

    Returns:
        MergePlan; its max_len is min(keep, n) for an int, ceil(keep * n) for a float, n for a tensor (n is the
        total for packed passages).

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or values out of range; the message names the argument.
            Values in tensors are checked on the CPU, and on a GPU under BTR_DEBUG=1.

    Example:
        >>> bits = pack_bits(torch.randn(2, 128, 768))
        >>> plan = match_tokens(bits, keep=0.5)
        >>> merged, sizes = merge_bits(bits, plan)
        >>> merged.shape
        torch.Size([2, 64, 96])

    Source: BTR (arXiv 2310.01329), offline compression; the bipartite form is ToMe's (arXiv 2210.09461).
    """
    checks.is_tensor("bits", bits)
    checks.is_optional_tensor("lengths", lengths)
    checks.is_optional_tensor("cu_seqlens", cu_seqlens)
    checks.packed("bits", bits, 2, "(B, n, w) or (total, w)")
    dims = 3 if cu_seqlens is None else 2
    checks.has_dims("bits", bits, dims, "(B, n, w)" if dims == 3 else "(total, w), since cu_seqlens was given")
    n = bits.shape[-2]
    if cu_seqlens is not None:
        if lengths is not None:
            raise ValueError("lengths: expected None together with cu_seqlens, which already tells the lengths")
        checks.offsets("cu_seqlens", cu_seqlens, bits.device)
        batch = cu_seqlens.shape[0] - 1
        length = cu_seqlens.diff() if isinstance(keep, float) else None
    elif lengths is not None:
        batch, length = bits.shape[0], lengths
        checks.integers("lengths", lengths, (batch,), "(B,)", bits.device)
    else:
        batch, length = bits.shape[0], None

    keep_per_passage, max_len = _keep(keep, length, n, batch, bits.device)
    slot, new_lengths = ops.match_tokens(bits, keep_per_passage, lengths, cu_seqlens)
    if cu_seqlens is None:
        return MergePlan(slot, new_lengths, max_len)
    new_cu_seqlens = torch.nn.functional.pad(new_lengths.cumsum(0, dtype=torch.int32), (1, 0))
    if bits.device.type == "cpu" and not torch.compiler.is_compiling():
        max_total = int(new_cu_seqlens[-1])
    else:
        max_total = _bound_on_total(keep, n, batch)
    return MergePlan(slot, new_lengths, max_len, new_cu_seqlens, cu_seqlens, max_total)


def _keep(keep: object, length: Tensor | None, n: int, batch: int, device: torch.device) -> tuple[Tensor, int]:
    """Tokens to keep in each passage, an integer tensor (B,), and the rows of a padded result.

    `length` is None where all passages have n tokens, or where no share of it is kept.
    """
    if isinstance(keep, Tensor):
        return keep, n
    if isinstance(keep, float):
        if not 0 < keep <= 1:
            raise ValueError(f"keep: expected a float in (0, 1], got {keep}")
        rows = math.ceil(keep * n)
        if length is not None:
            # float64, as Python's own ceil(keep * length).
            return (length.double() * keep).ceil().long().clamp(min=1), rows
    else:
        if not isinstance(keep, (int, torch.SymInt)):
            raise TypeError(f"keep: expected an int, a float or an integer tensor, got {type(keep).__name__}")
        checks.is_int("keep", keep, 1)
        rows = min(keep, n)
    return torch.full((batch,), max(rows, 1), dtype=torch.int64, device=device), rows


def _bound_on_total(keep: object, n: int, batch: int) -> int:
    if isinstance(keep, Tensor):
        return n
    return min(n, math.ceil(keep * n) + batch) if isinstance(keep, float) else min(n, keep * batch)


def merge_bits(
    bits: Tensor, plan: MergePlan, sizes: Tensor | None = None, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Majority vote of the tokens of each slot.

    Args:
        bits: uint8 (B, n, w), or (total, w) where the plan is of packed passages.
        plan: what `match_tokens` returned.
        sizes: int32, shape of plan.slot: how many original tokens each token already stands for (its votes); 1 if
            None.
        cu_seqlens: offsets of packed passages; those the plan was made with by default.

    Returns:
        bits uint8 (B, plan.max_len, w) or (plan.max_total, w), and sizes int32 (B, plan.max_len) or
        (plan.max_total,). A tie takes the bit of the slot's earliest token. Rows past plan.lengths are 0 with
        size 0.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or values out of range; the message names the argument.

    Example:
        >>> bits = torch.tensor([[[3], [1], [1]]], dtype=torch.uint8)
        >>> merge_bits(bits, match_tokens(bits, 1))
        (tensor([[[1]]], dtype=torch.uint8), tensor([[3]], dtype=torch.int32))

    Source: BTR (arXiv 2310.01329), offline compression.
    """
    checks.is_tensor("bits", bits)
    return ops.merge_bits(bits, *_merge_arguments(plan, sizes, cu_seqlens))


def merge_tokens(
    x: Tensor, plan: MergePlan, sizes: Tensor | None = None, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean of the tokens of each slot, weighted by how many original tokens each stands for.

    Args:
        x: float32, float16 or bfloat16 (B, n, d), or (total, d) where the plan is of packed passages.
        plan: what `match_tokens` returned.
        sizes: int32, shape of plan.slot; 1 if None.
        cu_seqlens: offsets of packed passages; those the plan was made with by default.

    Returns:
        x (B, plan.max_len, d) or (plan.max_total, d) in x's dtype, summed in float32 and differentiable in x; and
        sizes int32 (B, plan.max_len) or (plan.max_total,). Rows past plan.lengths are 0 with size 0.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or values out of range; the message names the argument.

    Example:
        >>> states = torch.randn(2, 128, 768)
        >>> merged, sizes = merge_tokens(states, match_tokens(pack_bits(states), keep=0.8))

    Source: BTR (arXiv 2310.01329), runtime compression; weighting by size is ToMe's (arXiv 2210.09461).
    """
    checks.is_tensor("x", x)
    return ops.merge_tokens(x, *_merge_arguments(plan, sizes, cu_seqlens))


def _merge_arguments(plan: MergePlan, sizes: Tensor | None, cu_seqlens: Tensor | None) -> tuple:
    if not isinstance(plan, MergePlan):
        raise TypeError(f"plan: expected a MergePlan, got {type(plan).__name__}")
    checks.is_tensor("plan.slot", plan.slot)
    checks.is_optional_tensor("sizes", sizes)
    checks.is_optional_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens is not None and plan.cu_seqlens is None:
        raise ValueError("cu_seqlens: expected None, since the plan is of padded passages")
    if plan.cu_seqlens is None:
        checks.is_int("plan.max_len", plan.max_len, 0)
        return plan.slot, sizes, plan.max_len, None, None
    checks.is_int("plan.max_total", plan.max_total, 0)
    offsets = plan.cu_seqlens_in if cu_seqlens is None else cu_seqlens
    return plan.slot, sizes, plan.max_total, offsets, plan.cu_seqlens
