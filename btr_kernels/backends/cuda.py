"""CUDA C++ kernels (`csrc/cuda/`) for tensors on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import native

DEVICES = ("cuda",)


def why_not() -> str | None:
    module, reason = native.load()
    if module is None:
        return reason
    if not module.build_info()["cuda_architectures"]:
        return "built without CUDA (no nvcc was found at build time)"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None


def kernel(operator: str) -> Callable[..., None] | None:
    return _KERNELS.get(operator)


def _float(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.float().contiguous()


def _pack_bits(x: Tensor, out: Tensor) -> None:
    torch.ops.btr_native.pack_bits(x.contiguous(), out)


def _unpack_bits(bits, d, scale, bias, token_scale, dtype, out) -> None:
    torch.ops.btr_native.unpack_bits(bits.contiguous(), _float(scale), _float(bias), _float(token_scale), out)


_KERNELS = {"pack_bits": _pack_bits, "unpack_bits": _unpack_bits}
