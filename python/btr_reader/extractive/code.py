"""How bits stand for the states of a BERT: what is binarized, what is restored, which bits are stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import btr_kernels

from ..training.signs import mask_signs


class SignCode(nn.Module):
    """Restores states from their signs: scale * (±1) + bias, and more where vocabulary id and place say more.

    scale, bias: `(d,)`, parameters; the ablation without calibration has 1 and 0, which are not trained. mask,
    majority: uint8 `(V, w)`, the tables of masked bits, or None: a bit that is not stored is its id's majority.
    centroids, places: float `(V, d)` and `(T, d)`, or None for both: what the vocabulary id and the place in the
    passage foretell of a normalised state, added up. With them a sign is that of what they do not foretell, the state
    is restored as weight * (centroid + place) + scale * (±1) + bias, and a bit that is not stored adds nothing.
    """

    def __init__(
        self,
        scale: Tensor,
        bias: Tensor,
        calibrated: bool = True,
        weight: Tensor | None = None,
        centroids: Tensor | None = None,
        places: Tensor | None = None,
        mask: Tensor | None = None,
        majority: Tensor | None = None,
    ):
        super().__init__()
        self.calibrated = calibrated
        self.scale = nn.Parameter(scale.detach().clone(), requires_grad=calibrated)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=calibrated)
        self.weight = None if weight is None else nn.Parameter(weight.detach().clone(), requires_grad=calibrated)
        # Constants of a reader: stores are made with them, so that training leaves them as they are.
        tables = {"centroids": centroids, "places": places, "mask": mask, "majority": majority}
        for name, table in tables.items():
            self.register_buffer(name, table)

    @property
    def channels(self) -> int:
        return len(self.scale)

    def deviation(self, normalised: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
        """What the signs are of: normalised states `(..., d)` of tokens `(...)` at positions `(...)` of their passage,
        less what these foretell."""
        return normalised if self.centroids is None else normalised - self._foretold(ids, positions)

    def as_read(self, signs: Tensor, ids: Tensor) -> Tensor:
        """The signs `(..., d)` that a store gives back; a masked one has no gradient."""
        return signs if self.mask is None else mask_signs(signs, ids, self.mask, self.majority)

    def restore(self, signs: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
        """States `(..., d)` with weight and bias of their norm, from signs as read."""
        if self.centroids is None:
            return torch.addcmul(self.bias, signs, self.scale)
        if self.mask is not None:
            signs = signs * (btr_kernels.unpack_bits(self.mask[ids], self.channels, dtype=signs.dtype) > 0)
        return torch.addcmul(self.bias, signs, self.scale) + self.weight * self._foretold(ids, positions)

    def restore_bits(self, bits: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
        """The same from packed bits uint8 `(..., w)`, as a store gives them."""
        if self.centroids is None:
            return btr_kernels.unpack_bits(bits, self.channels, scale=self.scale.detach()) + self.bias
        return self.restore(btr_kernels.unpack_bits(bits, self.channels), ids, positions)

    def _foretold(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.centroids[ids] + self.places[positions]
