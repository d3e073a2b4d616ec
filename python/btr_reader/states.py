"""Token states that a sub-layer of T5 reads: floats, or bits with what restores them.

A pre-norm sub-layer uses its input twice: as the residual that its result is added to, and normalised, as what its
first projections multiply. Everything after those two is the same for all forms of the reader, so a states object
gives exactly them, and the encoder does not know which kind it runs on. Projections of one input are asked for
together: on bits they are one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

import btr_kernels

from .attention import rms_norm
from .linears import Linears, float_linear
from .settings import CutPoint, ReaderSettings


class Projections(Protocol):
    """The first projections of a sub-layer, of its normalised input `(..., d)`."""

    def each(self, *linears: nn.Linear) -> tuple[Tensor, ...]:
        """`linear(norm(states))`, `(..., N)`, of each."""
        ...

    def geglu(self, gate: nn.Linear, linear: nn.Linear) -> Tensor:
        """`gelu(gate(norm(states))) * linear(norm(states))`, `(..., N)`."""
        ...


class States(Protocol):
    """Token states `(..., d)`."""

    def residual(self) -> Tensor:
        """The states as floats `(..., d)`."""
        ...

    def normalised(self, norm: nn.Module) -> Projections:
        """The first projections of the sub-layer with this norm."""
        ...


@dataclass(frozen=True, eq=False)
class FloatProjections:
    normed: Tensor
    apply: Linears

    def each(self, *linears: nn.Linear) -> tuple[Tensor, ...]:
        return tuple(self.apply(linear, self.normed) for linear in linears)

    def geglu(self, gate: nn.Linear, linear: nn.Linear) -> Tensor:
        return F.gelu(self.apply(gate, self.normed), approximate="tanh") * self.apply(linear, self.normed)


@dataclass(frozen=True, eq=False)
class FloatStates:
    """States held as they are, float `(..., d)`."""

    values: Tensor
    apply: Linears = float_linear

    def residual(self) -> Tensor:
        return self.values

    def normalised(self, norm: nn.Module) -> FloatProjections:
        return FloatProjections(rms_norm(self.values, norm), self.apply)


def norm_scale(norm: nn.Module, residual_scale: Tensor, cut_point: CutPoint) -> Tensor:
    """What the sub-layer after the cut reads of bits: norm_scale * (±1), `(d,)`; differentiable.

    At `attention_output` the bits are the signs of the normalised state, whose magnitude the norm's weight gamma
    replaces: gamma itself (BTR, calibrated binarization). At `layer_output` the restored residual rho * (±1) is
    normalised: its mean square is the same for every token, so gamma * rho / sqrt(mean(rho^2) + eps), without an
    approximation.
    """
    if cut_point == "attention_output":
        return norm.weight
    return norm.weight * residual_scale / torch.sqrt(residual_scale.pow(2).mean() + norm.variance_epsilon)


def after_the_cut(
    model: T5ForConditionalGeneration, settings: ReaderSettings
) -> tuple[nn.Module, tuple[nn.Linear, ...]]:
    """The sub-layer that reads the states at the cut: its norm and its first projections."""
    if settings.cut_point == "attention_output":
        layer = model.encoder.block[settings.cut_layer - 1].layer[1]
        return layer.layer_norm, (layer.DenseReluDense.wi_0, layer.DenseReluDense.wi_1)
    layer = model.encoder.block[settings.cut_layer].layer[0]
    return layer.layer_norm, (layer.SelfAttention.q, layer.SelfAttention.k, layer.SelfAttention.v)


class BinaryCode:
    """How a reader reads its bits back: the residual is rho * (±1), the normalised state is `norm_scale` * (±1).

    The first projections of the sub-layer after the cut are prepared once, as one weight with the scale folded in.
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
        self.norm, self.linears = after_the_cut(model, settings)
        self.residual_scale = residual_scale
        self.norm_scale = norm_scale(self.norm, residual_scale, settings.cut_point)
        self._widths = [linear.weight.shape[0] for linear in self.linears]
        self._prepared = btr_kernels.prepare_weight(
            torch.cat([linear.weight for linear in self.linears]), scale=self.norm_scale, precision=precision
        )

    def residual(self, bits: Tensor) -> Tensor:
        """uint8 `(..., w)` -> `(..., d)` in the model's dtype."""
        scale = self.residual_scale
        return btr_kernels.unpack_bits(bits, scale.shape[0], scale=scale, dtype=self.norm.weight.dtype)

    def restore(self, bits: Tensor) -> BinaryStates:
        """States of uint8 `(..., w)` that may still lie in pinned memory: one pass brings them to the model's device
        and makes their residual."""
        bits, residual = btr_kernels.restore_bits(bits, self.residual_scale, dtype=self.norm.weight.dtype)
        return BinaryStates(bits, self, residual)

    def project(self, bits: Tensor) -> tuple[Tensor, ...]:
        """uint8 `(..., w)` -> `linear(norm_scale * (±1))`, `(..., N)`, of each of `linears`."""
        return btr_kernels.unpack_matmul(bits, self._prepared).split(self._widths, -1)

    def geglu(self, bits: Tensor) -> Tensor:
        """uint8 `(..., w)` -> `gelu(gate) * linear`, `(..., N)`, of the two `linears` of a feed-forward."""
        return btr_kernels.unpack_geglu(bits, self._prepared)


@dataclass(frozen=True, eq=False)
class BinaryProjections:
    bits: Tensor
    code: BinaryCode

    def each(self, *linears: nn.Linear) -> tuple[Tensor, ...]:
        self._check(linears)
        return self.code.project(self.bits)

    def geglu(self, gate: nn.Linear, linear: nn.Linear) -> Tensor:
        self._check((gate, linear))
        return self.code.geglu(self.bits)

    def _check(self, linears: tuple[nn.Linear, ...]) -> None:
        if linears != self.code.linears:
            raise ValueError("linears: expected those of the sub-layer after the cut, which were prepared")


@dataclass(frozen=True, eq=False)
class BinaryStates:
    """States held as packed bits, uint8 `(..., w)`, read back through a `BinaryCode`, and as the residual if that is
    there already."""

    bits: Tensor
    code: BinaryCode
    restored: Tensor | None = None

    def residual(self) -> Tensor:
        return self.code.residual(self.bits) if self.restored is None else self.restored

    def normalised(self, norm: nn.Module) -> BinaryProjections:
        if norm is not self.code.norm:
            raise ValueError("norm: expected that of the sub-layer after the cut: the bits are no other's input")
        return BinaryProjections(self.bits, self.code)
