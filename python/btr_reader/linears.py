"""The float matrix products of a reader: which library computes them, and at which precision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btr_kernels import token_linear
from btr_kernels.reference import geglu

from .attention import rms_norm
from .devices import runs_token_kernels
from .huge_pages import HugePages

LinearPrecision = Literal["float", "int8"]


class Linears(Protocol):
    """Applies a linear layer without bias."""

    def __call__(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """`(..., in)` -> `(..., out)`."""
        ...


def float_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)`, at the weight's precision."""
    return float_product(x, linear.weight)


def float_product(x: Tensor, weight: Tensor) -> Tensor:
    """x `(..., d)` times the transpose of weight `(N, d)`.

    For float32 on a CPU, PyTorch calls MKL, which on processors that are not Intel's does not use what they have, and
    reads the weight with one thread where x is a single row: half the speed of oneDNN or less
    (`benchmarks/notes/reader.md`). For few tokens our own kernel is faster than either.
    """
    if _are_few(x):
        return token_linear(x, weight)
    if _onednn_takes(x) and not torch.is_grad_enabled():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


def _onednn_takes(x: Tensor) -> bool:
    # The operator is one that torch.compile writes for frozen weights. It is not in builds without oneDNN.
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return plain and torch.backends.mkldnn.is_available()


#: Up to how many tokens `token_linear` beats oneDNN: at 20 tokens it takes 0.7 to 0.9 of the time, at 32 about
#: the same (768 to 768 and 2048, 2048 to 768; two cores of an EPYC, Zen 5, weights from memory).
_FEW_TOKENS = 24


class BlockLinears:
    """Projections with what stands around them in a T5 block: a norm before, a gate and a residual behind.

    For a few float32 tokens on a CPU that is one kernel, since then the time between the weights counts.
    """

    def __init__(self, apply: Linears):
        self.apply = apply

    def __call__(
        self,
        linear: nn.Linear,
        x: Tensor,
        *,
        norm: nn.Module | None = None,
        residual: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor:
        """residual + linear(norm(x)), `(..., N)`; gated: of 2 N outputs, gelu of the first N times the others."""
        if self.apply is float_linear and _are_few(x):
            weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.variance_epsilon)
            return token_linear(x, linear.weight, norm=weight, eps=eps, residual=residual, gated=gated)
        y = self.apply(linear, x if norm is None else rms_norm(x, norm))
        if gated:
            y = geglu(y)
        return y if residual is None else residual + y


def _are_few(x: Tensor) -> bool:
    return x.numel() <= _FEW_TOKENS * x.shape[-1] and runs_token_kernels(x)


def side_by_side(groups: Sequence[Sequence[nn.Linear]], *, huge_pages: bool = False) -> list[nn.Linear]:
    """For each group one layer, with copies of its weights, whose outputs are those of its layers, one after the other.

    A single token is read as fast as the weight arrives, and every product waits for its threads: one call of three
    weights of 768 x 768 takes 200 us, three calls 280. (Parts of one memory instead of copies would take none, but then
    whoever saves the model finds its tensors shared.)

    huge_pages: copies everything, on a CPU, into memory that is read faster; without it layers alone in their group are
    returned as they are.
    """
    memory = None
    if huge_pages:
        weights = [linear.weight for group in groups for linear in group]
        memory = HugePages(sum(weight.nbytes for weight in weights), len(groups))
    return [group[0] if len(group) == 1 and not huge_pages else _joint(group, memory) for group in groups]


def _joint(linears: Sequence[nn.Linear], memory: HugePages | None) -> nn.Linear:
    weights = [linear.weight.detach() for linear in linears]
    shape = (sum(len(weight) for weight in weights), weights[0].shape[1])
    weight = torch.cat(weights, out=memory.empty(shape, weights[0].dtype) if memory else None)
    joint = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joint.weight = nn.Parameter(weight, requires_grad=False)
    return joint


class Int8Linears:
    """Dynamically quantized linear layers, the usual way to a faster reader on a CPU without another method.

    Weights are 8 bits with a factor for each output, inputs 7 bits with a factor for each call, measured on it (the
    products of 8 bits twice would overflow on processors without VNNI); sums are 32-bit integers, results float32. The
    weights of layers that were applied are held a second time, at a quarter of the size; changing them afterwards has
    no effect.

    >>> apply = Int8Linears()  # doctest: +SKIP
    >>> apply(linear, torch.randn(1, 9, linear.in_features)).dtype  # doctest: +SKIP
    torch.float32
    """

    def __init__(self) -> None:
        """Raises `ValueError` where this build of PyTorch has no 8-bit linear layers."""
        if torch.backends.quantized.engine in (None, "none") or not hasattr(torch, "quantize_per_channel"):
            raise ValueError("int8: this build of PyTorch has no quantized linear layers")
        self._packed: dict[nn.Linear, Any] = {}

    def __call__(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """Raises `ValueError` for a weight that is not on the CPU."""
        packed = self._packed.get(linear)
        if packed is None:
            packed = self._packed[linear] = _quantized(linear.weight.detach())
        return torch.ops.quantized.linear_dynamic(x, packed, reduce_range=True)


def _quantized(weight: Tensor):
    if weight.device.type != "cpu":
        raise ValueError(f"int8: expected weights on the CPU, got {weight.device}")
    # A row of zeros has no scale of its own: any is right.
    scale = weight.float().abs().amax(1).clamp(min=1e-30) / 127
    zero = torch.zeros_like(scale, dtype=torch.int64)
    with warnings.catch_warnings():
        # The constructor is deprecated in favour of packages on top of PyTorch, whose products of 8 bits on a CPU take
        # one and a half to three times as long (torch._int_mm and scaling); the operator itself is not.
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        quantized = torch.quantize_per_channel(weight.float(), scale, zero, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, None)
