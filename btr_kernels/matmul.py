"""Projections of packed tokens and of few float tokens, and prepared weights: the public functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks
from .ops.direct import calls as ops
from .reference.matmul import BLOCK, geglu

PRECISIONS = ("exact", "fast", "int8", "fp8")

# Rounding adds at most half a unit a channel, 32 a block: 32700 + 32 < 2^15. The rest is for the rounding of factors.
_BLOCK_SUM = 32700


@dataclass(frozen=True, eq=False, repr=False)
class PreparedWeight:
    """A weight made ready for repeated `unpack_matmul` calls by `prepare_weight`; immutable, inference only.

    Attributes:
        data: (d, N), the transpose of the weight with any scale folded in: float for "exact", int16 for "fast" (the
            absolute values of the 64 channels of a block sum to less than 2^15; float16 if made on a GPU), int8 for
            "int8", float8_e4m3fn for "fp8". The channels of an output are next to each other if made on a GPU, whose
            tensor cores take 8-bit weights in no other order, else the outputs of a channel are.
        factors: float32; what the numbers in data count: (ceil(d / 64), N) for int16, None for "exact", else (1, N).
        precision: "exact", "fast", "int8" or "fp8".
        dtype: the dtype of the weight it was made from: the default dtype of results.
    """

    data: Tensor
    factors: Tensor | None
    precision: str
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """(N, d), as in `torch.nn.Linear.weight`."""
        return self.data.shape[::-1]

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device | str) -> PreparedWeight:
        """A copy on another device (or this object if it is there already), with the same numbers in the same order:
        prepare a weight where it is used."""
        if self.device == torch.device(device):
            return self
        factors = None if self.factors is None else self.factors.to(device)
        return PreparedWeight(self.data.to(device), factors, self.precision, self.dtype)

    def __repr__(self) -> str:
        n, d = self.shape
        return f"PreparedWeight({n}, {d}, precision={self.precision!r}, dtype={self.dtype}, device={self.device})"


def prepare_weight(weight: Tensor, scale: Tensor | None = None, precision: str = "exact") -> PreparedWeight:
    """Fold the scale into a weight and round it once, for any number of `unpack_matmul` calls.

    Precisions, of which all but the first sum integers exactly and only then go to float32:

    - "exact": the weight as it is, summed in float32; the error of PyTorch itself at the weight's dtype.
    - "fast": 16 bits a weight and a factor for each 64 channels of an output. The factor is the sum of the block's
      absolute values over 32700, so rounding, half a unit a channel, leaves the sum of the block's integers below
      32700 + 32 < 2^15: no choice of signs overflows a 16-bit sum, whatever the finite weights are. An output is off
      by at most 32 / 32700 < 1e-3 of the sum of its absolute weights. Taken over random bits and independent
      rounding errors (variance 1/12), the relative Frobenius error is at most sqrt(64 / 12) / 32700 * 8 = 5.7e-4,
      since a sum of 64 absolute values is at most 8 times their Euclidean norm; 4.5e-4 for Gaussian weights, less
      the heavier their tails. Where the weights of a block sum to less than 4e-34, factors are as small as float32 has
      them and errors larger. On a GPU float16 and one factor an output instead,
      relative error at most 2^-11 a weight.
    - "int8": 8 bits a weight and one factor an output, its largest absolute weight over 127; relative error at most
      1.2e-2 for Gaussian weights, without a bound for others. A quarter of the memory of float32.
    - "fp8": float8_e4m3fn and one factor an output, on GPUs from compute capability 8.9 on; relative error at most
      4e-2 for Gaussian weights.

    Args:
        weight: (N, d) float32, float16 or bfloat16, as in `torch.nn.Linear`.
        scale: (d,) float, folded in; None for 1.
        precision: one of the above.

    Returns:
        PreparedWeight.

    Raises:
        TypeError, ValueError: wrong dtype or shape, an unknown precision, one that the device lacks, or a weight
            or scale with infinities or NaN.

    Example:
        >>> w = prepare_weight(torch.randn(2048, 768), scale=torch.rand(768), precision="int8")
        >>> unpack_matmul(pack_bits(torch.randn(10, 768)), w).shape
        torch.Size([10, 2048])
    """
    checks.is_tensor("weight", weight)
    checks.is_optional_tensor("scale", scale)
    checks.has_dtype("weight", weight, checks.FLOATS)
    checks.has_dims("weight", weight, 2, "(N, d)")
    if weight.shape[1] < 1:
        raise ValueError(f"weight: expected (N, d) with d >= 1, got {tuple(weight.shape)}")
    checks.channels("scale", scale, weight.shape[1], weight.device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp8" and not _has_fp8(weight.device):
        raise ValueError(f"precision: 'fp8' needs a GPU backend that has it, got a weight on {weight.device}")
    with torch.no_grad():
        w = weight.detach() if scale is None else weight.detach().float() * scale.detach().float()
        if not weight.is_meta and not bool(torch.isfinite(w).all()):
            raise ValueError("weight: expected finite values (times scale), got infinity or NaN")
        # A private copy: changing the weight afterwards must not change what was prepared.
        if weight.device.type == "cpu":
            w = w.t().clone(memory_format=torch.contiguous_format)
        else:
            w = w.clone(memory_format=torch.contiguous_format).t()
        if precision == "exact":
            return PreparedWeight(w, None, precision, weight.dtype)
        if precision == "fast":
            prepare = _fast if weight.device.type == "cpu" else _half
        else:
            prepare = _int8 if precision == "int8" else _fp8
        data, factors = prepare(w.float())
        return PreparedWeight(data, factors, precision, weight.dtype)


def _has_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _fast(w: Tensor) -> tuple[Tensor, Tensor]:
    """(d, N) float32 -> int16 whose absolute values sum to at most 2^15 - 1 over each block, and factors."""
    d, n = w.shape
    padded = torch.nn.functional.pad(w, (0, 0, 0, -d % BLOCK))
    norms = padded.view(len(padded) // BLOCK, BLOCK, n).abs().sum(1, dtype=torch.float64)
    factors = (norms / _BLOCK_SUM).float().clamp_(min=torch.finfo(torch.float32).tiny)
    data = (w / factors.repeat_interleave(BLOCK, 0)[:d]).round_().to(torch.int16)
    return data, factors


def _int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """(d, N) float32 -> int8 and a factor for each column."""
    scaled, factors = _columns_to(w, 127)
    return scaled.round_().clamp_(-127, 127).to(torch.int8), factors


def _half(w: Tensor) -> tuple[Tensor, Tensor]:
    """(d, N) float32 -> float16 and a factor for each column."""
    scaled, factors = _columns_to(w, 2.0**15)
    return scaled.half(), factors


def _fp8(w: Tensor) -> tuple[Tensor, Tensor]:
    """(d, N) float32 -> float8_e4m3fn, which holds numbers up to 448, and a factor for each column."""
    scaled, factors = _columns_to(w, 448.0)
    return scaled.clamp_(-448.0, 448.0).to(torch.float8_e4m3fn), factors


def _columns_to(w: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Each column scaled to this largest absolute value, and the factors to undo it: 1 for a column of zeros."""
    found = w.abs().amax(0, keepdim=True)
    factors = torch.where(found > 0, found / largest, 1.0)
    return w / factors, factors


def unpack_matmul(
    bits: Tensor,
    weight: Tensor | PreparedWeight,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    token_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Project packed tokens: token_scale * ((+-1 * scale) @ weight.T) + bias, without unpacking them to memory.

    Args:
        bits: uint8 (..., ceil(d / 8)); pad bits are ignored.
        weight: (N, d) float32, float16 or bfloat16 as in `torch.nn.Linear`, or what `prepare_weight` made of it.
        scale: (d,) float, one factor a channel; None for 1, and for a prepared weight, which holds its own.
        bias: (N,) float.
        token_scale: (...,) float, one factor a token.
        out_dtype: float32, float16 or bfloat16; the weight's by default.
        out: where to write, (..., N) of the result's dtype.

    Returns:
        (..., N), accumulated in float32; differentiable in weight, scale, bias and token_scale (a prepared weight
        and its scale are constants).

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or a second scale; the message names the argument.

    Example:
        >>> bits = pack_bits(torch.randn(40, 128, 768))
        >>> unpack_matmul(bits, torch.randn(2048, 768), scale=torch.rand(768)).shape
        torch.Size([40, 128, 2048])

    Source: BTR (arXiv 2310.01329): restored states are read by the first projection of the joint layers.
    """
    if isinstance(weight, PreparedWeight) and out is None and _needs_gradient(bias, token_scale):
        return _with_differentiable_epilogue(bits, weight, scale, bias, token_scale, out_dtype)
    return _call("unpack_matmul", bits, weight, scale, bias, token_scale, out_dtype, out)


def unpack_geglu(
    bits: Tensor,
    weight: Tensor | PreparedWeight,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    token_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Both first projections of T5's feed-forward, and the product of the two: gelu(gate) * linear.

    With y = `unpack_matmul(bits, weight, ...)` of 2 N columns, of which the first N are the gate, this is
    `gelu(y[..., :N], approximate="tanh") * y[..., N:]`, without y in memory. For projections that only share their
    bits, as an attention's queries, keys and values, concatenate the weights: one `unpack_matmul` of all is faster than
    three.

    Args:
        bits: uint8 (..., ceil(d / 8)); pad bits are ignored.
        weight: (2 N, d) float32, float16 or bfloat16, the gate's rows first, or what `prepare_weight` made of it.
        scale: (d,) float, one factor a channel; None for 1, and for a prepared weight, which holds its own.
        bias: (2 N,) float.
        token_scale: (...,) float, one factor a token, of both projections.
        out_dtype: float32, float16 or bfloat16; the weight's by default.
        out: where to write, (..., N) of the result's dtype.

    Returns:
        (..., N), accumulated in float32; differentiable as `unpack_matmul` is, then in several steps.

    Raises:
        TypeError, ValueError: as `unpack_matmul`, or an odd number of rows.

    Example:
        >>> weight = prepare_weight(torch.cat([torch.randn(2048, 768), torch.randn(2048, 768)]))
        >>> unpack_geglu(pack_bits(torch.randn(40, 128, 768)), weight).shape
        torch.Size([40, 128, 2048])

    Source: the feed-forward of T5 v1.1 (GEGLU, Shazeer, arXiv 2002.05202), read by BTR (arXiv 2310.01329) after the
    attention of the cut layer.
    """
    constants = isinstance(weight, PreparedWeight)
    if out is None and _needs_gradient(bias, token_scale, *(() if constants else (weight, scale))):
        if not constants:
            checks.is_tensor("weight", weight)
            checks.has_dims("weight", weight, 2, "(2 N, d)")
        if weight.shape[0] % 2:
            raise ValueError(f"weight: expected (2 N, d), an even number of rows, got {tuple(weight.shape)}")
        y = unpack_matmul(bits, weight, scale, bias, token_scale=token_scale, out_dtype=torch.float32)
        out_dtype = out_dtype or weight.dtype
        checks.is_dtype("out_dtype", out_dtype, checks.FLOATS)
        return geglu(y).to(out_dtype)
    return _call("unpack_geglu", bits, weight, scale, bias, token_scale, out_dtype, out)


def token_linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    gated: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Project one or a few float tokens, with the norm, gate and residual around it, in one pass over the weight.

    A decoder's step multiplies single tokens: what counts is how fast weights arrive and how little is lost between
    them. For more than some tens of tokens a matrix product is faster.

    Args:
        x: (..., d) float32, float16 or bfloat16.
        weight: (N, d), or (2 N, d) if gated, the gate's rows first; float32, float16 or bfloat16, whatever x is.
        norm: (d,) float, the weight of an RMS norm of x; None for x as it is.
        eps: added to the mean square by the norm.
        residual: (..., N) float, added to the result.
        gated: gelu of the first half of the products, in its approximation by tanh, times the other half.
        out: where to write, (..., N) of x's dtype.

    Returns:
        (..., N) of x's dtype, computed in float32. There is no gradient.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or a tensor that asks for a gradient; the message names the
            argument.

    Example:
        >>> states, weight = torch.randn(1, 768), torch.randn(2 * 2048, 768)
        >>> token_linear(states, weight, norm=torch.ones(768), gated=True).shape
        torch.Size([1, 2048])

    Source: the blocks of T5 v1.1 (Raffel et al. 2020; GEGLU: Shazeer, arXiv 2002.05202), read token by token.
    """
    checks.is_tensor("x", x)
    checks.is_tensor("weight", weight)
    checks.are_optional_tensors(norm=norm, residual=residual, out=out)
    checks.without_gradient("token_linear", x=x, weight=weight, norm=norm, residual=residual)
    if out is None:
        return ops.token_linear(x, weight, norm, eps, residual, gated)
    checks.writable(out)
    ops.token_linear_out(x, weight, norm, eps, residual, gated, out)
    return out


def _needs_gradient(*inputs: object) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)


def _call(
    operator: str,
    bits: Tensor,
    weight: Tensor | PreparedWeight,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype | None,
    out: Tensor | None,
) -> Tensor:
    """The operator, or its form for prepared weights, once everything that is not its business has been checked."""
    checks.is_tensor("bits", bits)
    for name, value in (("scale", scale), ("bias", bias), ("token_scale", token_scale), ("out", out)):
        checks.is_optional_tensor(name, value)
    if isinstance(weight, PreparedWeight):
        if scale is not None:
            raise ValueError("scale: expected None, since the prepared weight already holds its scale")
        name, head = f"{operator}_prepared", (weight.data, weight.factors, weight.precision)
        differentiable = (bias, token_scale)
    else:
        checks.is_tensor("weight", weight)
        checks.has_dtype("weight", weight, checks.FLOATS)
        name, head, differentiable = operator, (weight, scale), (weight, scale, bias, token_scale)
    if out is not None:
        checks.has_dtype("out", out, checks.FLOATS)
    if out_dtype is None:
        out_dtype = weight.dtype if out is None else out.dtype
    checks.is_dtype("out_dtype", out_dtype, checks.FLOATS)
    args = (bits, *head, bias, token_scale, out_dtype)
    if out is None:
        return getattr(ops, name)(*args)
    checks.writable(out, *differentiable)
    getattr(ops, f"{name}_out")(*args, out)
    return out


def _with_differentiable_epilogue(
    bits: Tensor,
    weight: PreparedWeight,
    scale: Tensor | None,
    bias: Tensor | None,
    token_scale: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """`unpack_matmul` of a prepared weight with the epilogue in PyTorch: the operator itself has no gradient, which
    keeps autograd's cost out of the inference path."""
    out_dtype = out_dtype or weight.dtype
    checks.is_dtype("out_dtype", out_dtype, checks.FLOATS)
    y = unpack_matmul(bits, weight, scale, out_dtype=torch.float32)
    if token_scale is not None:
        checks.per_token("token_scale", token_scale, bits.shape[:-1], bits.device)
        y = y * token_scale.float().unsqueeze(-1)
    if bias is not None:
        checks.channels("bias", bias, weight.shape[0], bits.device, "(N,)")
        y = y + bias.float()
    return y.to(out_dtype)
