"""Token states that a sub-layer of T5 reads: floats, or bits with what restores them.

A pre-norm sub-layer uses its input twice: as the residual that its result is added to, and normalised, as what its
first projections multiply. Everything after those two is the same for all forms of the reader, so a states object
gives exactly them, and the encoder does not know which kind it runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

import btr_kernels

from .attention import rms_norm
from .settings import ReaderSettings

Projection = Callable[[nn.Linear], Tensor]


class States(Protocol):
    """Token states `(..., d)`."""

    def residual(self) -> Tensor:
        """The states as floats `(..., d)`."""
        ...

    def normalised(self, norm: nn.Module) -> Projection:
        """A function that gives `linear(norm(states))`, `(..., N)`, for each first projection of a sub-layer."""
        ...


@dataclass(frozen=True, eq=False)
class FloatStates:
    """States held as they are, float `(..., d)`."""

    values: Tensor

    def residual(self) -> Tensor:
        return self.values

    def normalised(self, norm: nn.Module) -> Projection:
        normed = rms_norm(self.values, norm)
        return lambda linear: linear(normed)


class BinaryCode:
    """How a reader reads its bits back: the residual is rho * (±1), the normalised state is `norm_scale` * (±1).

    At `attention_output` the bits are the signs of the normalised state, whose magnitude the norm's weight gamma
    replaces: norm_scale = gamma (BTR, calibrated binarization). At `layer_output` the restored residual is
    normalised: its mean square is the same for every token, so norm_scale = gamma * rho / sqrt(mean(rho^2) + eps),
    without an approximation.

    The first projections of the sub-layer after the cut are prepared once, with the scale folded in.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: T5ForConditionalGeneration,
        settings: ReaderSettings,
        residual_scale: Tensor,
        precision: str = "exact",
    ):
        """residual_scale: rho, float32 `(d,)`; precision: as in `btr_kernels.prepare_weight`."""
        if settings.cut_point == "attention_output":
            layer = model.encoder.block[settings.cut_layer - 1].layer[1]
            linears = (layer.DenseReluDense.wi_0, layer.DenseReluDense.wi_1)
            norm_scale = layer.layer_norm.weight
        else:
            layer = model.encoder.block[settings.cut_layer].layer[0]
            linears = (layer.SelfAttention.q, layer.SelfAttention.k, layer.SelfAttention.v)
            root_mean_square = torch.sqrt(residual_scale.pow(2).mean() + layer.layer_norm.variance_epsilon)
            norm_scale = layer.layer_norm.weight * residual_scale / root_mean_square
        self.residual_scale = residual_scale
        self.norm_scale = norm_scale
        self._norm = layer.layer_norm
        self._prepared = {
            linear: btr_kernels.prepare_weight(linear.weight, scale=norm_scale, precision=precision)
            for linear in linears
        }

    def residual(self, bits: Tensor) -> Tensor:
        """uint8 `(..., w)` -> float32 `(..., d)`."""
        return btr_kernels.unpack_bits(bits, self.residual_scale.shape[0], scale=self.residual_scale)

    def project(self, bits: Tensor, norm: nn.Module, linear: nn.Linear) -> Tensor:
        """uint8 `(..., w)` -> `linear(norm_scale * (±1))`, `(..., N)`, for the sub-layer after the cut only."""
        if norm is not self._norm:
            raise ValueError("norm must be that of the sub-layer after the cut: the bits are not the input of another")
        return btr_kernels.unpack_matmul(bits, self._prepared[linear])


@dataclass(frozen=True, eq=False)
class BinaryStates:
    """States held as packed bits, uint8 `(..., w)`, read back through a `BinaryCode`."""

    bits: Tensor
    code: BinaryCode

    def residual(self) -> Tensor:
        return self.code.residual(self.bits)

    def normalised(self, norm: nn.Module) -> Projection:
        return lambda linear: self.code.project(self.bits, norm, linear)
