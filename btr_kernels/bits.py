"""Packing, unpacking, binarization and masked bits: the public functions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from . import checks, reference
from .ops.direct import calls as ops


def _check_norm(norm: str | None, eps: float) -> str:
    checks.norm("norm", norm)
    checks.is_number("eps", eps, 0)
    return norm or "none"


def pack_bits(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Pack the signs of x, one bit a channel: channel c in byte c // 8, bit c % 8 from the least significant.

    A bit is 1 iff x >= 0: +0.0 and -0.0 give 1, NaN gives 0. Bits past d are 0. The layout is that of
    `numpy.packbits(x >= 0, axis=-1, bitorder="little")` and of the codes of `faiss.IndexBinary*`.

    Args:
        x: (..., d) float32, float16, bfloat16 or bool; any strides.
        out: where to write, uint8 (..., ceil(d / 8)).

    Returns:
        uint8 (..., ceil(d / 8)).

    Raises:
        TypeError, ValueError: wrong dtype or shape; the message names the argument.

    Example:
        >>> pack_bits(torch.tensor([[1.0, -2.0, 0.0, -0.0]]))
        tensor([[13]], dtype=torch.uint8)

    Source: BTR (arXiv 2310.01329), section on calibrated binarization: b = sign(norm(h)).
    """
    checks.is_tensor("x", x)
    if out is None:
        return ops.pack_bits(x)
    checks.is_tensor("out", out)
    ops.pack_bits_out(x, out)
    return out


def unpack_bits(
    bits: Tensor,
    d: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    token_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Restore floats from packed bits: token_scale * scale * (+-1) + bias.

    Args:
        bits: uint8 (..., ceil(d / 8)); pad bits are ignored.
        d: number of channels.
        scale: (d,) float, 1 if None. In BTR the norm's scale, or the restore scale E|h_c|.
        bias: (d,) float, 0 if None.
        token_scale: (...,) float, one factor a token, 1 if None.
        dtype: float32, float16 or bfloat16; computed in float32 and rounded once.
        out: where to write, (..., d) of `dtype` (which is then taken from `out`).

    Returns:
        (..., d) of `dtype`; differentiable in scale, bias and token_scale.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; the message names the argument.

    Example:
        >>> unpack_bits(torch.tensor([[13]], dtype=torch.uint8), 4, scale=torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([[ 1., -2.,  3.,  4.]])
    """
    checks.is_tensor("bits", bits)
    checks.are_optional_tensors(scale=scale, bias=bias, token_scale=token_scale, out=out)
    checks.is_int("d", d, 1)
    checks.is_dtype("dtype", dtype, checks.FLOATS)
    if out is None:
        return ops.unpack_bits(bits, d, scale, bias, token_scale, dtype)
    checks.has_dtype("out", out, checks.FLOATS)
    checks.writable(out, scale, bias, token_scale)
    ops.unpack_bits_out(bits, d, scale, bias, token_scale, out.dtype, out)
    return out


def restore_bits(bits: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Bring packed bits to a device and restore floats from them, in one pass over the bits.

    A GPU kernel reads bits in pinned host memory by itself, so that copying and expanding overlap. They are held until
    it is done; in a CUDA graph, keep them for as long as the graph.

    Args:
        bits: uint8 (..., ceil(d / 8)) on the device of scale or in host memory; pad bits are ignored.
        scale: (d,) float. In BTR the restore scale E|h_c|.
        dtype: float32, float16 or bfloat16; computed in float32 and rounded once.

    Returns:
        bits uint8 (..., ceil(d / 8)) and states (..., d) of `dtype`: scale * (+-1); differentiable in scale.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; the message names the argument.

    Example:
        >>> _, states = restore_bits(torch.tensor([[13]], dtype=torch.uint8), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> states
        tensor([[ 1., -2.,  3.,  4.]])
    """
    checks.is_tensor("bits", bits)
    checks.is_tensor("scale", scale)
    checks.is_dtype("dtype", dtype, checks.FLOATS)
    return ops.restore_bits(scale, bits, dtype)


def binarize(
    x: Tensor, norm: str | None = None, eps: float = 1e-6, return_magnitude: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Packed signs of the normalised x, and on request what the normalisation divided by, in one pass over x.

    Args:
        x: (..., d) float32, float16 or bfloat16.
        norm: None or "rms": exactly the bits of x, since dividing by the RMS keeps signs. "layer": the bits of
            x - mean(x).
        eps: added under the square root of the magnitude.
        return_magnitude: also return the magnitude.

    Returns:
        bits uint8 (..., ceil(d / 8)); with `return_magnitude` also float32 (...,): sqrt(mean(x**2) + eps), or
        sqrt(var(x) + eps) for "layer" (population variance).

    Raises:
        TypeError, ValueError: wrong dtype, shape or norm; the message names the argument.

    Example:
        >>> bits, rms = binarize(torch.tensor([[3.0, -4.0]]), norm="rms", return_magnitude=True)

    Source: BTR (arXiv 2310.01329), calibrated binarization inside the normalisation.
    """
    checks.is_tensor("x", x)
    results = ops.binarize(x, _check_norm(norm, eps), eps, bool(return_magnitude))
    return results if return_magnitude else results[0]


def sign_scale(
    x: Tensor,
    scale: Tensor,
    norm: str | None = None,
    eps: float = 1e-6,
    grad: str | tuple[str, float] = "ste",
    clamp: float = 2.0,
) -> Tensor:
    """scale * sign(norm(x)): binarization as training sees it, differentiable in x and scale.

    Forward it is what `unpack_bits(binarize(x, norm), d, scale)` gives. Backward the sign's derivative is
    replaced; the norm's own Jacobian is exact.

    Args:
        x: (..., d) float32, float16 or bfloat16.
        scale: (d,) float.
        norm: None, "rms" or "layer", as in `binarize`.
        eps: added under the norm's square root.
        grad: "ste" (straight through: derivative 1 where abs(norm(x)) <= clamp, else 0) or ("tanh", beta) (the
            derivative of tanh(beta * norm(x)), beta > 0, to be annealed upwards).
        clamp: half-width of the straight-through window, > 0; unused for "tanh".

    Returns:
        (..., d) in x's dtype.

    Raises:
        TypeError, ValueError: wrong dtype, shape, norm, grad or clamp; the message names the argument.

    Example:
        >>> x = torch.randn(4, 768, requires_grad=True)
        >>> sign_scale(x, torch.ones(768), norm="rms", grad=("tanh", 4.0)).sum().backward()

    Source: BTR (arXiv 2310.01329), calibrated binarization; the annealed tanh is BPR's (arXiv 2106.00882).
    """
    checks.is_tensor("x", x)
    checks.is_tensor("scale", scale)
    kind, limit = ("ste", clamp) if isinstance(grad, str) and grad == "ste" else _tanh(grad)
    checks.is_number("clamp" if kind == "ste" else "grad", limit, 0, above=True)
    return ops.sign_scale(x, scale, _check_norm(norm, eps), eps, kind, limit)


def _tanh(grad: object) -> tuple[str, float]:
    if isinstance(grad, (tuple, list)) and len(grad) == 2 and grad[0] == "tanh":
        return "tanh", grad[1]
    raise ValueError(f"grad: expected 'ste' or ('tanh', beta), got {grad!r}")


def calibrate_scale(batches: Iterable[Tensor], norm: str | None = None, eps: float = 1e-6) -> Tensor:
    """Per-channel mean of abs(norm(x)): the scale for which scale * sign(norm(x)) has the least squared error.

    Args:
        batches: tensors (..., d), all of one d and device, float32, float16 or bfloat16; read once, one at a time.
        norm: None, "rms" or "layer", as in `binarize`.
        eps: added under the norm's square root.

    Returns:
        float32 (d,), accumulated in float64.

    Raises:
        TypeError, ValueError: a batch of another kind, or no token at all.

    Example:
        >>> rho = calibrate_scale([torch.randn(128, 768) for _ in range(4)])
    """
    kind = _check_norm(norm, eps)
    if isinstance(batches, Tensor):
        raise TypeError("batches: expected an iterable of tensors, got one Tensor; pass [x]")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected an iterable of tensors, got {type(batches).__name__}")
    total, count = None, 0
    for x in batches:
        checks.is_tensor("batches", x)
        checks.floats("batches", x)
        if total is not None and x.shape[-1] != total.shape[0]:
            raise ValueError(f"batches: expected {total.shape[0]} channels as in the first, got {tuple(x.shape)}")
        size = reference.as_rows(reference.normalise(x.detach(), kind, eps).abs()).sum(0, dtype=torch.float64)
        total = size if total is None else total + size
        count += x.numel() // x.shape[-1]
    if not count:
        raise ValueError("batches: expected at least one token, got none")
    return (total / count).float()


def compress_bits(bits: Tensor, ids: Tensor, mask: Tensor, k: int, *, out: Tensor | None = None) -> Tensor:
    """Keep only the bits of the channels that the mask of a token's vocabulary id selects.

    A token's id foretells most of its bits. A table of masks names for each id the k channels that it foretells worst;
    only their bits are stored, and `expand_bits` takes the others from a table of majorities.

    Args:
        bits: uint8 (..., w), as `pack_bits` returns them.
        ids: int32 or int64 (...,): the row of `mask` of each token.
        mask: uint8 (V, w), packed like bits: 1 for the channels that are stored, exactly k in each row; pad bits 0.
        k: bits stored for a token, 1 to 8 w.
        out: where to write, uint8 (..., ceil(k / 8)).

    Returns:
        uint8 (..., ceil(k / 8)): the selected bits in the order of their channels, packed like bits, pad bits 0.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the CPU (and on a GPU under BTR_DEBUG=1) also an id
            that is no row of `mask`, or one whose row has not k bits. Else such an id counts as the nearest one, bits
            past the k-th are left out and missing ones are 0.

    Example:
        >>> mask = torch.tensor([[0b1010], [0b0110]], dtype=torch.uint8)
        >>> compress_bits(torch.tensor([[0b1000], [0b0011]], dtype=torch.uint8), torch.tensor([0, 1]), mask, 2)
        tensor([[2],
                [1]], dtype=torch.uint8)

    Source: this project; the bits that are not stored are predicted as in a majority code per vocabulary id, where BTR
    (arXiv 2310.01329, offline compression) has a codebook per id.
    """
    checks.is_tensor("bits", bits)
    checks.are_optional_tensors(ids=ids, mask=mask)
    if out is None:
        return ops.compress_bits(bits, ids, mask, k)
    checks.is_tensor("out", out)
    ops.compress_bits_out(bits, ids, mask, k, out)
    return out


def expand_bits(codes: Tensor, ids: Tensor, mask: Tensor, fill: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Restore packed bits of what `compress_bits` kept: channels in the mask of a token's id take the bits of its code
    in order, all others those of the id's row of `fill`.

    Args:
        codes: uint8 (..., c), 1 <= c <= w.
        ids: int32 or int64 (...,): the row of `mask` and `fill` of each token.
        mask: uint8 (V, w), packed: 1 for the channels that are stored. Where a row has more than 8 c of them, those
            past the code are 0, on all devices: checking this for each token would cost a quarter of the call.
        fill: uint8 (V, w), packed: the bits of the channels that are not stored, in BTR their majority among the
            tokens of the id; its bits within the mask are ignored.
        out: where to write, uint8 (..., w).

    Returns:
        uint8 (..., w).

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the CPU (and on a GPU under BTR_DEBUG=1) also an id
            that is no row of `mask`. Else such an id counts as the nearest one.

    Example:
        >>> mask = torch.tensor([[0b1010], [0b0110]], dtype=torch.uint8)
        >>> fill = torch.tensor([[0b0001], [0b0000]], dtype=torch.uint8)
        >>> expand_bits(torch.tensor([[2], [1]], dtype=torch.uint8), torch.tensor([0, 1]), mask, fill)
        tensor([[9],
                [2]], dtype=torch.uint8)

    Source: this project, as `compress_bits`.
    """
    checks.is_tensor("codes", codes)
    checks.are_optional_tensors(ids=ids, mask=mask, fill=fill)
    if out is None:
        return ops.expand_bits(codes, ids, mask, fill)
    checks.is_tensor("out", out)
    ops.expand_bits_out(codes, ids, mask, fill, out)
    return out
