"""Definition of packing, unpacking, binarization and its training form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_BIT = tuple(1 << i for i in range(8))


def pack_bits(x: Tensor) -> Tensor:
    """Bit c of a token is 1 iff x[c] >= 0 (so -0.0 gives 1 and NaN gives 0), least significant bit first."""
    ones = x if x.dtype == torch.bool else x >= 0
    d = x.shape[-1]
    ones = F.pad(ones.to(torch.uint8), (0, -d % 8)).unflatten(-1, (-1, 8))
    weights = torch.tensor(_BIT, dtype=torch.uint8, device=x.device)
    return (ones * weights).sum(-1, dtype=torch.uint8)


def _ones(bits: Tensor) -> Tensor:
    """Packed bits (..., w) -> 1 and 0, uint8 (..., 8 w)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits.unsqueeze(-1) >> shifts) & 1).flatten(-2)


def signs(bits: Tensor, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packed bits (..., w) -> +1.0 and -1.0, shape (..., d)."""
    return _ones(bits)[..., :d].to(dtype).mul_(2).sub_(1)


def unpack_bits(
    bits: Tensor, d: int, scale: Tensor | None, bias: Tensor | None, token_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """token_scale * (scale * +-1) + bias, computed in float32 and rounded once to `dtype`."""
    if scale is None and bias is None and token_scale is None:
        return signs(bits, d, dtype)
    x = signs(bits, d)
    if scale is not None:
        x = x * scale.float()
    if token_scale is not None:
        x = x * token_scale.float().unsqueeze(-1)
    if bias is not None:
        x = x + bias.float()
    return x.to(dtype)


def restore_bits(scale: Tensor, bits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The bits on the device of scale, and what they stand for: scale * +-1."""
    bits = bits.to(scale.device)
    return bits, unpack_bits(bits, scale.shape[0], scale, None, None, dtype)


def as_rows(x: Tensor) -> Tensor:
    """(..., d) -> (rows, d), also for a single vector and for d = 0."""
    return torch.atleast_2d(x).flatten(0, -2)


def _mean(x: Tensor) -> Tensor:
    """Mean over channels, summed in float64 so that no finite input overflows, as float32 (..., 1)."""
    return x.mean(-1, keepdim=True, dtype=torch.float64).float()


def _mean_square(x: Tensor) -> Tensor:
    """Mean of x**2 over channels without overflow for finite x, float64 (...,)."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).square() / x.shape[-1]


def _centre(x: Tensor, norm: str) -> Tensor:
    return x.float() - _mean(x) if norm == "layer" else x.float()


def _denominator(x: Tensor, norm: str, eps: float) -> Tensor:
    """What norm(x) divides by: sqrt(mean(x**2) + eps), or sqrt(var(x) + eps) for "layer"; float32 (...,)."""
    return (_mean_square(_centre(x, norm)) + eps).sqrt().float()


def normalise(x: Tensor, norm: str, eps: float) -> Tensor:
    """x as the binarizer sees it, float32: x itself, x / rms(x), or (x - mean) / std ("none", "rms", "layer")."""
    if norm == "none":
        return x.float()
    return _centre(x, norm) / _denominator(x, norm, eps).unsqueeze(-1)


def _is_positive(x: Tensor, norm: str) -> Tensor:
    # An infinite mean leaves no difference to speak of: inf - inf is NaN, which counts as negative.
    return (_centre(x, norm) if norm == "layer" else x) >= 0


def binarize(x: Tensor, norm: str, eps: float, magnitude: bool) -> tuple[Tensor, Tensor]:
    """Packed signs of norm(x), and what the norm divided by (an empty tensor unless `magnitude`)."""
    bits = pack_bits(_is_positive(x, norm))
    size = _denominator(x, norm, eps) if magnitude else x.new_empty(0, dtype=torch.float32)
    return bits, size


def sign_scale(x: Tensor, scale: Tensor, norm: str, eps: float, grad: str, limit: float) -> Tensor:
    """scale * sign(norm(x)) in x's dtype; NaN counts as negative, as in `pack_bits`."""
    scale = scale.to(x.dtype)
    return torch.where(_is_positive(x, norm), scale, -scale)


def sign_scale_backward(
    grad_out: Tensor, x: Tensor, scale: Tensor, norm: str, eps: float, grad: str, limit: float
) -> tuple[Tensor, Tensor]:
    """Gradients in x and scale. With n = norm(x): d sign(n)/dn is 1 within +-limit ("ste", limit = clamp) or
    limit * (1 - tanh(limit * n)**2) ("tanh", limit = beta); dn/dx is the norm's own Jacobian."""
    g = grad_out.float()
    grad_scale = as_rows(torch.where(_is_positive(x, norm), g, -g)).sum(0)
    n = normalise(x, norm, eps)
    slope = (n.abs() <= limit).float() if grad == "ste" else limit * (1 - torch.tanh(limit * n).square())
    g = g * scale.float() * slope
    if norm != "none":
        g_out = g - n * (g * n).mean(-1, keepdim=True)
        if norm == "layer":
            g_out = g_out - g.mean(-1, keepdim=True)
        g = g_out / _denominator(x, norm, eps).unsqueeze(-1)
    return g.to(x.dtype), grad_scale.to(scale.dtype)


def counts(bits: Tensor) -> Tensor:
    """How many bits of each token are set, int32 (...,)."""
    in_byte = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.int32, device=bits.device)
    return in_byte[bits.int()].sum(-1, dtype=torch.int32)


def _stored(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of the ids (the nearest for an id that has none), which channels are stored, and the places of those."""
    rows = ids.long().clamp(0, max(mask.shape[0] - 1, 0))
    stored = _ones(mask[rows]).bool()
    return rows, stored, stored.cumsum(-1) - 1


def compress_bits(bits: Tensor, ids: Tensor, mask: Tensor, k: int) -> Tensor:
    """The bits of the channels in mask[id], in order; those past the k-th are left out, missing ones are 0."""
    _, stored, place = _stored(ids, mask)
    place = place.where(stored, k).clamp(max=k)  # place k is cut off
    code = torch.zeros(*bits.shape[:-1], k + 1, dtype=torch.bool, device=bits.device)
    return pack_bits(code.scatter_(-1, place, _ones(bits).bool())[..., :k])


def expand_bits(codes: Tensor, ids: Tensor, mask: Tensor, fill: Tensor) -> Tensor:
    """Channels in mask[id] take the bits of the code in order, 0 past its end; the others are those of fill[id]."""
    rows, stored, place = _stored(ids, mask)
    width = 8 * codes.shape[-1]
    taken = _ones(codes).gather(-1, place.clamp(0, width - 1)) * (place < width)
    return pack_bits(torch.where(stored, taken, _ones(fill[rows])).bool())
