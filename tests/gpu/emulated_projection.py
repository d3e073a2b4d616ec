"""The launcher of `unpack_matmul` and its relatives, compiled for the CPU, called as csrc/torch/cuda.cpp calls it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import count

import torch

from btr_kernels.backends.native import outputs_first

OPERATORS = ("unpack_matmul", "unpack_matmul_prepared", "unpack_geglu", "unpack_geglu_prepared")
#: btr::DType
_DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 4, torch.float8_e4m3fn: 6}


class _Projection(ctypes.Structure):
    """BtrProjection of csrc/cuda/launchers.h."""

    _pointers = ("bits", "weight", "scale", "factors", "bias", "token_scale", "out")
    _fields_ = (
        [(name, ctypes.c_void_p) for name in _pointers]
        + [(name, ctypes.c_int64) for name in ("m", "n", "d")]
        + [(name, ctypes.c_int32) for name in ("weight_dtype", "out_dtype", "gated", "tile")]
    )


#: Compute capability and kernel (BtrProjection::tile) of each call, in turn: every kernel meets every operator.
FORMS = ((90, 0), (90, 1), (80, 1), (90, 2), (80, 0), (90, 3), (80, 3))
_calls = count()


def forms_of_case(results: int) -> Sequence[tuple[int, int]]:
    """Those that a case with so many results is computed in: all, if it is small, else what is chosen."""
    return FORMS if results < 200_000 else FORMS[:1]


def launch(library: ctypes.CDLL, form: tuple[int, int] | None, name: str, *args) -> int:
    """The operator's arguments, then its result -> cudaError_t."""
    capability, tile = form or FORMS[next(_calls) % len(FORMS)]
    ctypes.c_int.in_dll(library, "emulator_capability").value = capability
    *head, bias, token_scale, _, out = args
    if name.endswith("_prepared"):
        bits, data, factors, _ = head
        weight, factors = outputs_first(data, factors, float8=capability >= 90)
        scale = None
    else:
        bits, weight, scale = head
        weight, factors = weight.contiguous(), None
    bits = bits.contiguous()
    vectors = [None if v is None else v.float().contiguous() for v in (scale, factors, bias, token_scale)]
    tensors = (bits, weight, *vectors, out)
    gated = "geglu" in name
    arguments = _Projection(
        *(None if t is None else t.data_ptr() for t in tensors),
        out.shape[:-1].numel(),
        out.shape[-1],
        weight.shape[1],
        _DTYPE[weight.dtype],
        _DTYPE[out.dtype],
        gated,
        tile,
    )
    library.btr_cuda_unpack_matmul_scratch.restype = ctypes.c_int64
    scratch = torch.empty(library.btr_cuda_unpack_matmul_scratch(ctypes.byref(arguments)) + 16, dtype=torch.uint8)
    scratch = scratch[-scratch.data_ptr() % 16 :]
    return library.btr_cuda_unpack_matmul(ctypes.byref(arguments), ctypes.c_void_p(scratch.data_ptr()), None)
