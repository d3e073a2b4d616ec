"""The operators as `torch.nn` modules: a calibrated binarizer and a linear layer over packed tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from . import checks
from .bits import binarize, calibrate_scale, sign_scale, unpack_bits
from .matmul import PRECISIONS, PreparedWeight, prepare_weight, unpack_matmul


class CalibratedBinarizer(nn.Module):
    """Binarization inside a normalisation, with a learned scale per channel.

    `forward` is the training form on floats (scale * sign(norm(x)), differentiable); `encode` and `decode` are its
    two halves for stored tokens: for finite x, `decode(encode(x))` equals `forward(x)` plus the bias.

    Args:
        d: channels.
        norm: None, "rms" or "layer", as in `btr_kernels.binarize`.
        eps: added under the norm's square root.
        grad: "ste" or ("tanh", beta), as in `btr_kernels.sign_scale`; may be changed between steps to anneal.
        clamp: half-width of the straight-through window.
        bias: also learn an offset per channel, added when decoding.

    Parameters: `scale` (d,), initially 1 (see `calibrate`); `bias` (d,), initially 0, or None.

    Example:
        >>> binarizer = CalibratedBinarizer(768, norm="rms")
        >>> states = torch.randn(4, 128, 768)
        >>> binarizer.calibrate([states])
        >>> restored = binarizer.decode(binarizer.encode(states))

    Source: BTR (arXiv 2310.01329), calibrated binarization.
    """

    def __init__(
        self,
        d: int,
        norm: str | None = None,
        eps: float = 1e-6,
        grad: str | tuple[str, float] = "ste",
        clamp: float = 2.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        checks.is_int("d", d, 1)
        checks.norm("norm", norm)
        self.d, self.norm, self.eps, self.grad, self.clamp = d, norm, eps, grad, clamp
        self.scale = nn.Parameter(torch.ones(d, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(d, device=device, dtype=dtype)) if bias else None

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the scale to E abs(norm(x)) over tensors (..., d): the least squared error of the restored tokens."""
        self.scale.copy_(calibrate_scale(batches, self.norm, self.eps))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) floats -> scale * sign(norm(x)) (+ bias), (..., d) in x's dtype."""
        y = sign_scale(x, self.scale, self.norm, self.eps, self.grad, self.clamp)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """(..., d) floats -> packed bits, uint8 (..., ceil(d / 8))."""
        return binarize(x, self.norm, self.eps)

    def decode(self, bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Packed bits -> scale * +-1 (+ bias), (..., d) of `dtype`; differentiable in scale and bias."""
        return unpack_bits(bits, self.d, self.scale, self.bias, dtype=dtype)

    def extra_repr(self) -> str:
        return f"{self.d}, norm={self.norm!r}, eps={self.eps}, grad={self.grad!r}, clamp={self.clamp}"


class BinaryLinear(nn.Module):
    """`torch.nn.Linear` on packed tokens: (+-1 * scale) @ weight.T + bias.

    `eval()` prepares the weight once (see `btr_kernels.prepare_weight`) and `train()` drops that form again. Weights
    that are changed in place while in eval mode need another `eval()`; loading a state dict and moving the module to
    another device or dtype do that by themselves. Where gradients are recorded the plain weight is used in any mode.

    Args:
        in_features: d, channels of a packed token.
        out_features: N.
        bias: learn an offset per output.
        scale: learn a factor per channel of the input (a calibrated scale belongs here).
        precision: of the prepared form: "exact", "fast", "int8" or "fp8".

    Parameters: `weight` (N, d), `bias` (N,) or None, `scale` (d,) or None.

    Example:
        >>> layer = BinaryLinear(768, 2048).eval()
        >>> layer(pack_bits(torch.randn(40, 128, 768))).shape
        torch.Size([40, 128, 2048])

    Source: BTR (arXiv 2310.01329): the first projection of the joint layers reads restored tokens.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        scale: bool = True,
        precision: str = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        checks.is_one_of("precision", precision, PRECISIONS)
        # As torch.nn.Linear initialises them, from which weights usually come.
        linear = nn.Linear(in_features, out_features, bias, device, dtype)
        self.in_features, self.out_features, self.precision = in_features, out_features, precision
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = nn.Parameter(torch.ones(in_features, device=device, dtype=dtype)) if scale else None
        self._prepared: PreparedWeight | None = None
        self.register_load_state_dict_post_hook(_prepare_again)

    @classmethod
    def from_linear(cls, linear: nn.Linear, scale: Tensor | None = None, precision: str = "exact") -> BinaryLinear:
        """A binary layer that shares the parameters of a float one; `scale` (d,) becomes its own parameter."""
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, scale is not None, precision, "meta"
        )
        layer.weight, layer.bias = linear.weight, linear.bias
        if scale is not None:
            layer.scale = nn.Parameter(scale.detach().clone())
        return layer.train(linear.training)

    def forward(self, bits: Tensor, token_scale: Tensor | None = None) -> Tensor:
        """Packed bits uint8 (..., ceil(d / 8)), token_scale (...,) -> (..., N) in the weight's dtype."""
        if self._prepared is not None and not self._records_gradients(token_scale):
            return unpack_matmul(bits, self._prepared, bias=self.bias, token_scale=token_scale)
        return unpack_matmul(bits, self.weight, self.scale, self.bias, token_scale=token_scale)

    def _records_gradients(self, token_scale: Tensor | None) -> bool:
        inputs = (self.weight, self.scale, self.bias, token_scale)
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)

    def _prepare(self) -> None:
        ready = not self.training and not self.weight.is_meta
        self._prepared = prepare_weight(self.weight, self.scale, self.precision) if ready else None

    def train(self, mode: bool = True) -> BinaryLinear:
        super().train(mode)
        self._prepare()
        return self

    def _apply(self, fn, recurse: bool = True) -> BinaryLinear:
        super()._apply(fn, recurse)
        _prepare_again(self)
        return self

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scale={self.scale is not None}, precision={self.precision!r}"
        )


def _prepare_again(layer: BinaryLinear, _keys: object = None) -> None:
    """After its parameters were replaced, perhaps by memory that is yet to be filled: then the plain weight serves."""
    try:
        layer._prepare()
    except ValueError:
        layer._prepared = None
