"""CUDA C++ kernels (`csrc/cuda/`) for tensors on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import native

DEVICES = ("cuda",)
#: Operators that csrc/torch/cuda*.cpp register for CUDA.
_OPERATORS = (
    "pack_bits",
    "unpack_bits",
    "restore_bits",
    "binarize",
    "expand_bits",
    "hamming_distance",
    "hamming_topk",
    "match_tokens",
    "merge_bits",
    "merge_tokens",
    "unpack_matmul",
    "unpack_matmul_prepared",
    "unpack_geglu",
    "unpack_geglu_prepared",
)


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
    return native.CALLS[operator] if operator in _OPERATORS else None
