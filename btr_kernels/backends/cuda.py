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
    built = module.build_info()
    if not built["cuda_architectures"]:
        return "built without CUDA (BTR_CUDA=off, or no nvcc of 12.5 or newer was found at build time)"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"needs a GPU of compute capability 8.0, this one has {capability[0]}.{capability[1]}"
    # Within a major version, drivers run what a newer toolkit built.
    driver, toolkit = torch._C._cuda_getDriverVersion() // 1000, int(built["cuda_toolkit"].split(".")[0])
    if driver < toolkit:
        return f"built by CUDA {built['cuda_toolkit']}, but the driver is one for CUDA {driver}"
    return None


def kernel(operator: str) -> Callable[..., None] | None:
    return native.CALLS[operator] if operator in _OPERATORS else None
