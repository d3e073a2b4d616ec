"""The CUDA launchers compiled for the CPU (`emulator/`), called with CPU tensors.

A new operator adds its call to `_CALLS`: the arguments of its launcher, which end with the stream. Scratch memory is
allocated there, as `csrc/torch/cuda.cpp` does.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from kernels.cases import as_tuple
from torch import Tensor

from . import emulated_projection
from .machine_code import nvcc

CSRC = Path(__file__).parents[2] / "csrc"
_DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.bool: 3, torch.int8: 4}  # btr::DType
_INT64 = ctypes.c_int64


def build(sources: Sequence[Path], library: Path) -> None:
    """nvcc only finds its headers here; the compiler is the host's."""
    flags = "-fPIC,-Wall,-Werror,-Wno-unknown-pragmas,-ffp-contract=off,-include,cuda/launch.cuh"
    emulator = Path(__file__).parent / "emulator"
    command = [nvcc(), "-x", "c++", "-std=c++17", "-O1", "-cudart", "none", "-shared", "-Xcompiler", flags]
    command += ["-I", str(emulator), "-I", str(CSRC), *map(str, sources), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)


class _Integers(ctypes.Structure):
    """BtrIntegers."""

    _fields_ = (("data", ctypes.c_void_p), ("wide", ctypes.c_int32))

    def __init__(self, values: Tensor | None):
        super().__init__(None if values is None else values.data_ptr(), values is not None and values.itemsize == 8)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _rows(tensor: Tensor) -> ctypes.c_int64:
    return _INT64(tensor.numel() // tensor.shape[-1])


def _pack_bits(library, x, out):
    return x, _DTYPE[x.dtype], _rows(out), _INT64(x.shape[-1]), out


def _unpack_bits(library, bits, d, scale, bias, token_scale, dtype, out):
    scale, bias, token_scale = (None if v is None else v.float() for v in (scale, bias, token_scale))
    return bits, _rows(bits), _INT64(d), scale, bias, token_scale, out, _DTYPE[dtype]


def _restore_bits(library, scale, bits, dtype, copy, states):
    return bits, _rows(bits), _INT64(scale.numel()), scale.float(), copy, states, _DTYPE[dtype]


def _binarize(library, x, norm, eps, magnitude, bits, size):
    size = size if magnitude else None
    return x, _DTYPE[x.dtype], _rows(bits), _INT64(x.shape[-1]), norm == "layer", ctypes.c_double(eps), bits, size


def _expand_bits(library, codes, ids, mask, fill, out):
    sizes = ids.numel(), mask.shape[0], codes.shape[-1], mask.shape[-1]
    return codes, _Integers(ids), mask, fill, *map(_INT64, sizes), out


def _hamming_distance(library, a, b, out):
    a, b = (t.expand(*out.shape[:-2], -1, -1).contiguous() for t in (a, b))
    batch = out.shape[:-2].numel()
    return a, b, *map(_INT64, (batch, *out.shape[-2:], a.shape[-1])), out


def _hamming_topk(library, a, b, k, distances, indices):
    rows = max(1, a.shape[0] // 2)  # several parts
    scratch = before_a_wall(torch.full((rows, b.shape[0]), -1, dtype=torch.int32))
    return a, b, *map(_INT64, (a.shape[0], *b.shape, k)), scratch, _INT64(rows), distances, indices


def _match_tokens(library, bits, keep, lengths, cu_seqlens, slot, new_lengths):
    sizes = tuple(map(_INT64, (slot.numel(), bits.shape[-1], keep.numel())))
    library.btr_cuda_match_tokens_scratch.restype = _INT64
    scratch = before_a_wall(torch.full((library.btr_cuda_match_tokens_scratch(*sizes),), 0xA5, dtype=torch.uint8))
    return bits, *sizes, _Integers(cu_seqlens), _Integers(lengths), _Integers(keep), slot, new_lengths, scratch


def _merged(tokens, slot, sizes, rows, cu_in, cu_out, out, new_sizes):
    batch = slot.shape[0] if cu_in is None else cu_in.numel() - 1
    numbers = map(_INT64, (slot.numel(), tokens.shape[-1], batch, rows))
    return *numbers, slot, sizes, _Integers(cu_in), _Integers(cu_out), out, new_sizes


def _merge_bits(library, bits, *rest):
    return bits, *_merged(bits, *rest)


def _merge_tokens(library, x, *rest):
    return x, _DTYPE[x.dtype], *_merged(x, *rest)


_CALLS = {
    function.__name__[1:]: function
    for function in (
        _pack_bits,
        _unpack_bits,
        _restore_bits,
        _binarize,
        _expand_bits,
        _hamming_distance,
        _hamming_topk,
        _match_tokens,
        _merge_bits,
        _merge_tokens,
    )
}


def before_a_wall(tensor: Tensor) -> Tensor:
    """A contiguous copy behind which memory is not accessible: reading past its end crashes."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return tensor.contiguous()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
        raise OSError("mprotect failed")
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=pages - size).view(tensor.shape)
    return copy.copy_(tensor)


class Emulator:
    _MARGIN = 64  # bytes before and after a result that must stay as they are

    def __init__(self, library: str):
        self._library = ctypes.CDLL(library)
        self._calls = 0
        self._form: tuple[int, int] | None = None  # of a projection

    def run(self, name: str, args: tuple) -> tuple:
        self._calls += 1
        # Every other call gets aligned arguments; those before a wall may be misaligned.
        place = before_a_wall if self._calls % 2 else lambda t: t.contiguous()
        args = tuple(place(a) if isinstance(a, Tensor) else a for a in args)
        buffers, outs = [], []
        for result in as_tuple(getattr(torch.ops.btr, name)(*self._meta(args))):
            size = result.numel() * result.element_size()
            buffers.append(torch.full((size + 2 * self._MARGIN,), 0xA5, dtype=torch.uint8))
            outs.append(buffers[-1][self._MARGIN : self._MARGIN + size].view(result.dtype).view(result.shape))
        self._launch(name, *args, *outs)
        for buffer in buffers:
            margins = torch.cat([buffer[: self._MARGIN], buffer[-self._MARGIN :]])
            assert bool((margins == 0xA5).all()), f"{name} wrote outside of its result"
        return tuple(outs)

    def run_case(self, name: str, args: tuple) -> Iterator[tuple]:
        """Results of every kernel that can compute them."""
        if name not in emulated_projection.OPERATORS:
            yield self.run(name, args)
            return
        (result,) = as_tuple(getattr(torch.ops.btr, name)(*self._meta(args)))
        try:
            for self._form in emulated_projection.forms_of_case(result.numel()):
                yield self.run(name, args)
        finally:
            self._form = None

    def run_end(self, name: str, args: tuple) -> tuple:
        """Runs the last two blocks only, on a device that holds the whole grid at once."""
        outs = [torch.empty(r.shape, dtype=r.dtype) for r in as_tuple(getattr(torch.ops.btr, name)(*self._meta(args)))]
        processors = ctypes.c_int.in_dll(self._library, "emulator_multiprocessors")
        first_block = _INT64.in_dll(self._library, "emulator_first_block")
        processors.value, first_block.value = 1 << 20, -2
        try:
            self._launch(name, *args, *outs)
        finally:
            processors.value, first_block.value = 1, 0
        return tuple(outs)

    @staticmethod
    def _meta(args: tuple) -> list:
        return [a.to("meta") if isinstance(a, Tensor) else a for a in args]

    def _launch(self, name: str, *args) -> None:
        if name in emulated_projection.OPERATORS:
            error = emulated_projection.launch(self._library, self._form, name, *args)
        else:
            call = _CALLS[name](self._library, *args)
            pointers = [_pointer(a) if a is None or isinstance(a, Tensor) else a for a in call]
            error = getattr(self._library, f"btr_cuda_{name}")(*pointers, _pointer(None))
        assert error == 0, f"btr_cuda_{name} returned cudaError_t {error}"
