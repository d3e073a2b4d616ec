"""Schemas, checks, fakes and gradients of packing, unpacking and binarization."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..backends import native
from ..reference import as_rows, counts
from .define import Result, define, register_autograd

_PACKABLE = (*checks.FLOATS, torch.bool)


def _pack_bits(x: Tensor) -> list[Result]:
    checks.has_dtype("x", x, _PACKABLE)
    *leading, d = checks.vectors("x", x, "(..., d)")
    return [Result((*leading, (d + 7) // 8), torch.uint8)]


define("pack_bits", "Tensor x", _pack_bits, out=True)


def _unpack_bits(
    bits: Tensor, d: int, scale: Tensor | None, bias: Tensor | None, token_scale: Tensor | None, dtype: torch.dtype
) -> list[Result]:
    checks.is_int("d", d, 1)
    checks.packed_for("bits", bits, d)
    checks.channels("scale", scale, d, bits.device)
    checks.channels("bias", bias, d, bits.device)
    checks.per_token("token_scale", token_scale, bits.shape[:-1], bits.device)
    checks.is_dtype("dtype", dtype, checks.FLOATS)
    return [Result((*bits.shape[:-1], d), dtype)]


define(
    "unpack_bits",
    "Tensor bits, SymInt d, Tensor? scale, Tensor? bias, Tensor? token_scale, ScalarType dtype",
    _unpack_bits,
    out=True,
)


def _unpack_bits_context(ctx, inputs, output) -> None:
    bits, ctx.d, scale, bias, token_scale, _ = inputs
    ctx.bias_dtype = bias.dtype if bias is not None else None
    ctx.save_for_backward(bits, scale, token_scale)


def _unpack_bits_backward(ctx, grad):
    bits, scale, token_scale = ctx.saved_tensors
    _, _, need_scale, need_bias, need_token_scale, _ = ctx.needs_input_grad
    g = grad.float()
    grad_scale = grad_bias = grad_token_scale = None
    if need_bias:
        grad_bias = as_rows(g).sum(0).to(ctx.bias_dtype)
    if need_scale or need_token_scale:
        signed = g * torch.ops.btr.unpack_bits(bits, ctx.d, None, None, None, torch.float32)
    if need_scale:
        weighted = signed if token_scale is None else signed * token_scale.float().unsqueeze(-1)
        grad_scale = as_rows(weighted).sum(0).to(scale.dtype)
    if need_token_scale:
        grad_token_scale = (signed if scale is None else signed * scale.float()).sum(-1).to(token_scale.dtype)
    return None, None, grad_scale, grad_bias, grad_token_scale, None


register_autograd("unpack_bits", _unpack_bits_context, _unpack_bits_backward)


def _restore_bits(scale: Tensor, bits: Tensor, dtype: torch.dtype) -> list[Result]:
    checks.floats("scale", scale)
    checks.has_dims("scale", scale, 1, "(d,)")
    checks.packed_for("bits", bits, scale.shape[0])
    if bits.device != scale.device and bits.device.type != "cpu":
        raise ValueError(f"bits: expected device {scale.device} or host memory, got {bits.device}")
    checks.is_dtype("dtype", dtype, checks.FLOATS)
    return [Result(bits.shape, torch.uint8), Result((*bits.shape[:-1], scale.shape[0]), dtype)]


define("restore_bits", "Tensor scale, Tensor bits, ScalarType dtype", _restore_bits, results=2)


def _restore_bits_context(ctx, inputs, output) -> None:
    scale, _, _ = inputs
    bits, _ = output
    ctx.dtype = scale.dtype
    ctx.mark_non_differentiable(bits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(bits)


def _restore_bits_backward(ctx, _, grad):
    if grad is None:
        return None, None, None
    (bits,) = ctx.saved_tensors
    signs = torch.ops.btr.unpack_bits(bits, grad.shape[-1], None, None, None, torch.float32)
    return as_rows(grad.float() * signs).sum(0).to(ctx.dtype), None, None


register_autograd("restore_bits", _restore_bits_context, _restore_bits_backward)


def _norm(norm: str, eps: float) -> None:
    checks.is_one_of("norm", norm, ("none", *checks.NORMS))
    checks.is_number("eps", eps, 0)


def _binarize(x: Tensor, norm: str, eps: float, magnitude: bool) -> list[Result]:
    checks.floats("x", x)
    _norm(norm, eps)
    leading, d = x.shape[:-1], x.shape[-1]
    return [
        Result((*leading, (d + 7) // 8), torch.uint8),
        Result(leading if magnitude else (0,), torch.float32),
    ]


define("binarize", "Tensor x, str norm, float eps, bool magnitude", _binarize, results=2)


_SIGN_SCALE = "Tensor x, Tensor scale, str norm, float eps, str grad, float limit"


def _sign_scale(x: Tensor, scale: Tensor, norm: str, eps: float, grad: str, limit: float) -> list[Result]:
    checks.floats("x", x)
    checks.is_tensor("scale", scale)
    checks.channels("scale", scale, x.shape[-1], x.device)
    _norm(norm, eps)
    checks.is_one_of("grad", grad, ("ste", "tanh"))
    checks.is_number("limit", limit, 0, above=True)
    return [Result(x.shape, x.dtype)]


def _sign_scale_backward(
    grad_out: Tensor, x: Tensor, scale: Tensor, norm: str, eps: float, grad: str, limit: float
) -> list[Result]:
    _sign_scale(x, scale, norm, eps, grad, limit)
    checks.has_dtype("grad_out", grad_out, (x.dtype,))
    checks.has_shape("grad_out", grad_out, x.shape, "that of x")
    checks.on_device("grad_out", grad_out, x.device)
    return [Result(x.shape, x.dtype), Result(scale.shape, scale.dtype)]


define("sign_scale", _SIGN_SCALE, _sign_scale)
define("sign_scale_backward", f"Tensor grad_out, {_SIGN_SCALE}", _sign_scale_backward, results=2)


def _sign_scale_context(ctx, inputs, output) -> None:
    x, scale, *ctx.options = inputs
    ctx.save_for_backward(x, scale)


def _sign_scale_gradients(ctx, grad):
    grad_x, grad_scale = torch.ops.btr.sign_scale_backward(grad, *ctx.saved_tensors, *ctx.options)
    return grad_x, grad_scale, None, None, None, None


register_autograd("sign_scale", _sign_scale_context, _sign_scale_gradients)


def _no_second_derivatives(ctx, *grads):
    raise NotImplementedError("sign_scale: second derivatives are not implemented")


register_autograd("sign_scale_backward", lambda ctx, inputs, output: None, _no_second_derivatives)


def _ids(ids: Tensor, tokens: Tensor, name: str, mask: Tensor) -> None:
    """Check the masks of the tokens' vocabulary ids; `name` is the argument that holds the tokens."""
    checks.is_tensor("ids", ids)
    checks.integers("ids", ids, tokens.shape[:-1], f"of {name} without the last dimension", tokens.device)
    checks.packed("mask", mask, 2, "(V, w)")
    checks.has_dims("mask", mask, 2, "(V, w)")
    checks.on_device("mask", mask, tokens.device)
    if mask.shape[0] == 0 and ids.numel() > 0:
        raise ValueError(f"mask: expected a row for each id, got shape {tuple(mask.shape)}")


def _compress_bits(bits: Tensor, ids: Tensor, mask: Tensor, k: int) -> list[Result]:
    checks.packed("bits", bits)
    _ids(ids, bits, "bits", mask)
    w = bits.shape[-1]
    checks.has_shape("mask", mask, (mask.shape[0], w), "(V, w)")
    checks.is_int("k", k, 1)
    if k > 8 * w:
        raise ValueError(f"k: expected at most {8 * w}, the channels of bits, got {k}")
    return [Result((*bits.shape[:-1], (k + 7) // 8), torch.uint8)]


def _check_compress_values(bits: Tensor, ids: Tensor, mask: Tensor, k: int) -> None:
    if native.says_yes("masks_hold", native.as_long(ids), mask.contiguous(), k):
        return
    checks.within("ids", ids, 0, mask.shape[0] - 1)
    if ids.numel():
        least, most = (int(n) for n in counts(mask[ids.long()]).aminmax())
        if least != k or most != k:
            raise ValueError(f"mask: expected k = {k} bits set in the row of each id, got {least} to {most}")


define(
    "compress_bits",
    "Tensor bits, Tensor ids, Tensor mask, SymInt k",
    _compress_bits,
    out=True,
    check_values=_check_compress_values,
)


def _expand_bits(codes: Tensor, ids: Tensor, mask: Tensor, fill: Tensor) -> list[Result]:
    checks.packed("codes", codes, 1, "(..., c)")
    _ids(ids, codes, "codes", mask)
    w = mask.shape[-1]
    if codes.shape[-1] > w:
        raise ValueError(f"codes: expected at most {w} bytes a token, as mask has, got shape {tuple(codes.shape)}")
    checks.has_dtype("fill", fill, (torch.uint8,))
    checks.has_shape("fill", fill, mask.shape, "that of mask")
    checks.on_device("fill", fill, codes.device)
    return [Result((*codes.shape[:-1], w), torch.uint8)]


def _check_expand_values(codes: Tensor, ids: Tensor, mask: Tensor, fill: Tensor) -> None:
    if not native.says_yes("ids_fit", ids, mask.shape[0]):
        checks.within("ids", ids, 0, mask.shape[0] - 1)


define(
    "expand_bits",
    "Tensor codes, Tensor ids, Tensor mask, Tensor fill",
    _expand_bits,
    out=True,
    check_values=_check_expand_values,
)
