"""The compiled parts of the package: the operators `torch.ops.btr_native.*` and the module `btr_kernels._C`.

`load` loads them. The functions in `CALLS`, one an operator, bring arguments into the form that the native operator
takes (contiguous; per-channel vectors float32; integers int64) and call it; PyTorch then picks the CPU or the CUDA
kernel by the tensors' device.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..reference.matmul import BLOCK, gradients
from . import pinned

_NORMS = {"none": 0, "rms": 1, "layer": 2}  # csrc/bits/bits.h


@cache
def load() -> tuple[ModuleType | None, str]:
    """The module `_C` once the native operators are registered, or None and why they are not there.

    Raises:
        ValueError: the environment variable BTR_ISA names an instruction set that does not run here, or BTR_TUNING
            no threshold and value.
    """
    library = Path(__file__).parent.parent / "libbtr_torch.so"
    if not library.exists():
        return None, f"the compiled library {library.name} is missing: run `pip install .` (needs a C++ compiler)"
    try:
        from .. import _C

        torch.ops.load_library(library)
    except (ImportError, OSError) as error:
        return None, f"the compiled library does not load: {error}"
    _C.tuning()  # reads BTR_ISA and BTR_TUNING: an error is better here than in an operator
    return _C, ""


class _Native:
    """The operators `torch.ops.btr_native.*` by name, each kept as the function in C++ that PyTorch calls for it: to
    look one up and to choose its only overload would take as long as the operator itself."""

    def __getattr__(self, name: str):
        operator = getattr(torch.ops.btr_native, name).default._op
        setattr(self, name, operator)
        return operator


_native = _Native()


def _float(vector: Tensor | None) -> Tensor | None:
    # The usual case first: each call into PyTorch that changes nothing costs as much as packing a token.
    if vector is None or (vector.dtype == torch.float32 and vector.is_contiguous()):
        return vector
    return vector.float().contiguous()


def as_long(values: Tensor | None) -> Tensor | None:
    if values is None or (values.dtype == torch.int64 and values.is_contiguous()):
        return values
    return values.long().contiguous()


def _integers(values: Tensor | None) -> Tensor | None:
    """As the kernels of the tensor's device take them: those of a GPU read int32 too."""
    if values is None or values.is_cpu:
        return as_long(values)
    return values.contiguous()


def says_yes(question: str, *args) -> bool:
    """The answer of a native operator about CPU tensors (csrc/torch/values.cpp); False also if nobody can be asked."""
    return args[0].is_cpu and load()[0] is not None and getattr(_native, question)(*args)


def _pack_bits(x: Tensor, out: Tensor) -> None:
    _native.pack_bits(x.contiguous(), out)


def _unpack_bits(bits, d, scale, bias, token_scale, dtype, out) -> None:
    _native.unpack_bits(bits.contiguous(), _float(scale), _float(bias), _float(token_scale), out)


def _restore_bits(scale, bits, dtype, copy, states) -> None:
    bits = pinned.readable(bits, scale.device)
    if scale.is_cpu:
        copy.copy_(bits)
        _native.unpack_bits(bits, _float(scale), None, None, states)
        return
    _native.restore_bits(bits, _float(scale), copy, states)
    pinned.hold(bits, scale.device)


def _binarize(x, norm, eps, magnitude, bits, size) -> None:
    _native.binarize(x.contiguous(), norm == "layer", eps, bits, size if magnitude else None)


def _sign_scale(x, scale, norm, eps, grad, limit, out) -> None:
    _native.sign_scale(x.contiguous(), _float(scale), norm == "layer", out)


def _sign_scale_backward(grad_out, x, scale, norm, eps, grad, limit, grad_x, grad_scale) -> None:
    sums = torch.empty_like(grad_scale, dtype=torch.float32) if grad_scale.dtype != torch.float32 else grad_scale
    _native.sign_scale_backward(
        grad_out.contiguous(), x.contiguous(), _float(scale), _NORMS[norm], eps, grad == "tanh", limit, grad_x, sums
    )
    if sums is not grad_scale:
        grad_scale.copy_(sums)


def _compress_bits(bits, ids, mask, k, out) -> None:
    _native.compress_bits(bits.contiguous(), as_long(ids), mask.contiguous(), k, out)


def _expand_bits(codes, ids, mask, fill, out) -> None:
    _native.expand_bits(codes.contiguous(), _integers(ids), mask.contiguous(), fill.contiguous(), out)


def _project(gated, bits, weight, scale, bias, token_scale, out) -> None:
    _native.unpack_matmul(
        bits.contiguous(),
        weight.contiguous(),
        False,
        gated,
        _float(scale),
        None,
        _float(bias),
        _float(token_scale),
        out,
    )


def outputs_first(data: Tensor, factors: Tensor | None, float8: bool) -> tuple[Tensor, Tensor | None]:
    """A prepared weight (d, N) as CUDA kernels read it: (N, d), with at most one factor an output. `float8`: whether
    they multiply that."""
    weight = data.t()
    if data.dtype == torch.int16:  # made on a CPU; on a GPU "fast" is another format
        spread = factors.t().repeat_interleave(BLOCK, 1)[:, : data.shape[0]]
        return (weight.float() * spread).contiguous(), None
    if data.dtype == torch.float8_e4m3fn and not float8:
        weight = weight.half()  # exactly
    return weight.contiguous(), None if factors is None else factors[0]


def _project_prepared(gated, bits, data, factors, bias, token_scale, out) -> None:
    if data.is_cuda:
        float8 = data.dtype == torch.float8_e4m3fn and torch.cuda.get_device_capability(data.device)[0] == 9
        weight, factors = outputs_first(data, factors, float8)
        _native.unpack_matmul(
            bits.contiguous(), weight, False, gated, None, _float(factors), _float(bias), _float(token_scale), out
        )
        return
    if factors is not None and data.is_floating_point():  # prepared on a GPU
        data, factors = data.float() * factors, None
    _native.unpack_matmul(
        bits.contiguous(), data.contiguous(), True, gated, None, _float(factors), _float(bias), _float(token_scale), out
    )


def _unpack_matmul(bits, weight, scale, bias, token_scale, out_dtype, out) -> None:
    _project(False, bits, weight, scale, bias, token_scale, out)


def _unpack_matmul_backward(
    grad, bits, weight, scale, token_scale, for_weight, for_scale, grad_weight, grad_scale
) -> None:
    # Weights of tables do not pay here: both operands change with every step. PyTorch's matmul, on fast signs.
    signs = bits.new_empty((*bits.shape[:-1], weight.shape[1]), dtype=torch.float32)
    _native.unpack_bits(bits.contiguous(), None, None, None, signs)
    found = gradients(grad, signs, weight, scale, token_scale, for_weight, for_scale)
    grad_weight.copy_(found[0])
    grad_scale.copy_(found[1])


def _unpack_matmul_prepared(bits, data, factors, precision, bias, token_scale, out_dtype, out) -> None:
    _project_prepared(False, bits, data, factors, bias, token_scale, out)


def _unpack_geglu(bits, weight, scale, bias, token_scale, out_dtype, out) -> None:
    _project(True, bits, weight, scale, bias, token_scale, out)


def _unpack_geglu_prepared(bits, data, factors, precision, bias, token_scale, out_dtype, out) -> None:
    _project_prepared(True, bits, data, factors, bias, token_scale, out)


def _token_linear(x, weight, norm, eps, residual, gated, out) -> None:
    _native.token_linear(x.contiguous(), weight.contiguous(), _float(norm), eps, _float(residual), gated, out)


def _token_attention(query, keys, values, bias, head_size, out) -> None:
    if bias is not None:
        bias = _float(bias) if bias.shape[-1] == keys.shape[1] else _float(bias.expand(*bias.shape[:-1], keys.shape[1]))
        bias = bias.expand(query.shape[0], query.shape[2] // head_size, query.shape[1], -1)
    _native.token_attention(query.contiguous(), keys.contiguous(), values.contiguous(), bias, head_size, out)


def _hamming_distance(a, b, out) -> None:
    batch = out.shape[:-2]
    a, b = a.expand(*batch, -1, -1).contiguous(), b.expand(*batch, -1, -1).contiguous()
    _native.hamming_distance(a, b, out)


def _hamming_topk(a, b, k, distances, indices) -> None:
    _native.hamming_topk(a.contiguous(), b.contiguous(), distances, indices)


def _match_tokens(bits, keep, lengths, cu_seqlens, slot, new_lengths) -> None:
    keep, lengths, cu_seqlens = _integers(keep), _integers(lengths), _integers(cu_seqlens)
    _native.match_tokens(bits.contiguous(), keep, lengths, cu_seqlens, slot, new_lengths)


def _merge_bits(bits, slot, sizes, rows, cu_in, cu_out, out, new_sizes) -> None:
    sizes = None if sizes is None else sizes.contiguous()
    _native.merge_bits(bits.contiguous(), slot.contiguous(), sizes, _integers(cu_in), _integers(cu_out), out, new_sizes)


def _merge_tokens(x, slot, sizes, rows, cu_in, cu_out, out, new_sizes) -> None:
    sizes = None if sizes is None else sizes.contiguous()
    _native.merge_tokens(x.contiguous(), slot.contiguous(), sizes, _integers(cu_in), _integers(cu_out), out, new_sizes)


def _merge_tokens_backward(grad, slot, sizes, new_sizes, cu_in, cu_out, grad_x) -> None:
    sizes = None if sizes is None else sizes.contiguous()
    _native.merge_tokens_backward(
        grad.contiguous(), slot.contiguous(), sizes, new_sizes.contiguous(), as_long(cu_in), as_long(cu_out), grad_x
    )


CALLS = {
    function.__name__[1:]: function
    for function in (
        _pack_bits,
        _unpack_bits,
        _restore_bits,
        _binarize,
        _sign_scale,
        _sign_scale_backward,
        _compress_bits,
        _expand_bits,
        _unpack_matmul,
        _unpack_matmul_backward,
        _unpack_matmul_prepared,
        _unpack_geglu,
        _unpack_geglu_prepared,
        _token_linear,
        _token_attention,
        _hamming_distance,
        _hamming_topk,
        _match_tokens,
        _merge_bits,
        _merge_tokens,
        _merge_tokens_backward,
    )
}
