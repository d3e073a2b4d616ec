"""Binary passage states as training sees them: the bits that reading will have, with gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import btr_kernels

from ..batches import PassageBatch
from ..compression import earliest_positions
from ..linears import float_linear
from ..offline_merging import offline_plan
from ..settings import CutPoint
from ..states import FloatProjections, norm_scale


def binary_signs(states: Tensor, surrogate: dict) -> Tensor:
    """±1 of float states `(..., d)`: exactly the bits of `pack_bits`, with the gradient of the surrogate."""
    ones = torch.ones(states.shape[-1], dtype=states.dtype, device=states.device)
    return btr_kernels.sign_scale(states, ones, norm="rms", **surrogate)


def merge_signs(
    signs: Tensor, read: PassageBatch, keep: float, same_id_first: bool = False
) -> tuple[Tensor, PassageBatch, Tensor]:
    """Merges passages offline, as `btr encode --keep` does: exactly its bits, with the gradient of the slots' means.

    signs: ±1 `(B, P, T, d)`. read: the ids that they are of, `(B, P, T)`. same_id_first: as in `offline_plan`. Returns
    the signs `(B, P, T', d)`, T' the most that a passage keeps, a batch of them with their sizes and positions, and the
    slot int64 `(B * P, T)` of every token, -1 for padding.
    """
    sizes = read.sizes
    count, passages = sizes.shape[:2]
    flat, lengths = signs.flatten(0, 1), (sizes > 0).sum(-1).flatten()
    bits = btr_kernels.pack_bits(flat.detach())
    plan = _plan(bits, read.content.flatten(0, 1), lengths, float(keep), same_id_first)
    majority, merged_sizes = btr_kernels.merge_bits(bits, plan)
    mean, _ = btr_kernels.merge_tokens(flat, plan)
    exact = btr_kernels.unpack_bits(majority, signs.shape[-1], dtype=signs.dtype)
    merged = (mean + (exact - mean).detach()).unflatten(0, (count, passages))
    merged_sizes = merged_sizes.unflatten(0, (count, passages))
    positions = earliest_positions(plan.slot, None, plan.max_len).unflatten(0, (count, passages))
    return merged, PassageBatch(merged, merged_sizes, positions), plan.slot.long()


def _plan(bits: Tensor, ids: Tensor, lengths: Tensor, keep: float, same_id_first: bool) -> btr_kernels.MergePlan:
    if not same_id_first:
        return btr_kernels.match_tokens(bits, keep, lengths)
    # Passages without a token, which a store has none of, would ask to keep one.
    present = lengths.cpu() > 0
    plan = offline_plan(bits.cpu()[present], ids.cpu()[present], lengths.cpu()[present], keep, True)
    slot = plan.slot.new_full(ids.shape, -1)
    kept = plan.lengths.new_zeros(len(ids))
    slot[present], kept[present] = plan.slot, plan.lengths
    return btr_kernels.MergePlan(slot.to(bits.device), kept.to(bits.device), plan.max_len)


@dataclass(frozen=True, eq=False)
class SignStates:
    """States (see `States`) restored from ±1 `(..., d)`, differentiable in them and in the scales.

    residual_scale: rho `(d,)`; None is the ablation without calibration, in which both scales are 1.
    """

    signs: Tensor
    residual_scale: Tensor | None
    cut_point: CutPoint

    def residual(self) -> Tensor:
        return self.signs if self.residual_scale is None else self.residual_scale * self.signs

    def normalised(self, norm: nn.Module) -> FloatProjections:
        if self.residual_scale is None:
            return FloatProjections(self.signs, float_linear)
        return FloatProjections(norm_scale(norm, self.residual_scale, self.cut_point) * self.signs, float_linear)
