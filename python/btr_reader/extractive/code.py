"""How bits stand for the states of a BERT: what is binarized, what is restored, which bits are stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import btr_kernels

from ..training.signs import mask_signs


class SignCode(nn.Module):
    """Restores states from their signs: scale * (±1) + bias, and more where the vocabulary id says more.

    scale, bias: `(d,)`, parameters; the ablation without calibration has 1 and 0, which are not trained. mask,
    majority: uint8 `(V, w)`, the tables of masked bits, or None: a bit that is not stored is its id's majority.
    centroids: float `(V, d)`, the mean of the normalised states of each id, or None. With them a sign is that of the
    distance to the centroid, the state is restored as weight * centroid + scale * (±1) + bias, and a bit that is not
    stored leaves the centroid as it is.
    """

    def __init__(
        self,
        scale: Tensor,
        bias: Tensor,
        calibrated: bool = True,
        weight: Tensor | None = None,
        centroids: Tensor | None = None,
        mask: Tensor | None = None,
        majority: Tensor | None = None,
    ):
        super().__init__()
        self.calibrated = calibrated
        self.scale = nn.Parameter(scale.detach().clone(), requires_grad=calibrated)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=calibrated)
        self.weight = None if weight is None else nn.Parameter(weight.detach().clone(), requires_grad=calibrated)
        # Constants of a reader: stores are made with them, so that training leaves them as they are.
        for name, table in (("centroids", centroids), ("mask", mask), ("majority", majority)):
            self.register_buffer(name, table)

    @property
    def channels(self) -> int:
        return len(self.scale)

    def deviation(self, normalised: Tensor, ids: Tensor) -> Tensor:
        """What the signs are of: normalised states `(..., d)` of tokens `(...)`, less their centroids."""
        return normalised if self.centroids is None else normalised - self.centroids[ids]

    def as_read(self, signs: Tensor, ids: Tensor) -> Tensor:
        """The signs `(..., d)` that a store gives back; a masked one has no gradient."""
        return signs if self.mask is None else mask_signs(signs, ids, self.mask, self.majority)

    def restore(self, signs: Tensor, ids: Tensor) -> Tensor:
        """States `(..., d)` with weight and bias of their norm, from signs as read."""
        if self.centroids is None:
            return torch.addcmul(self.bias, signs, self.scale)
        if self.mask is not None:
            signs = signs * (btr_kernels.unpack_bits(self.mask[ids], self.channels, dtype=signs.dtype) > 0)
        return torch.addcmul(self.bias, signs, self.scale) + self.weight * self.centroids[ids]

    def restore_bits(self, bits: Tensor, ids: Tensor) -> Tensor:
        """The same from packed bits uint8 `(..., w)`, as a store gives them."""
        if self.centroids is None:
            return btr_kernels.unpack_bits(bits, self.channels, scale=self.scale.detach()) + self.bias
        return self.restore(btr_kernels.unpack_bits(bits, self.channels), ids)
