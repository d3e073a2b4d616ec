"""Memory in pages of 2 MB, for weights that are read from end to end for every token."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_PAGE = 2 << 20
#: A cache line, as PyTorch aligns its own tensors.
_ALIGNMENT = 64


class HugePages:
    """Room for CPU tensors that are made once and live as long as any of them.

    The processor fetches ahead only within a page. Two cores of an EPYC (Zen 5) read a decoder's weights 1.16 times as
    fast from these as from pages of 4 KB (`benchmarks/decoder_weights.py`). Linux gives them to those who ask, where it
    is set to (`/sys/kernel/mm/transparent_hugepage/enabled`: `always` or `madvise`); elsewhere this is plain memory.

    >>> HugePages(4 * 12).empty((3, 4)).shape
    torch.Size([3, 4])
    """

    def __init__(self, size: int, tensors: int = 1):
        """size: bytes of all tensors together. tensors: how many of them there will be."""
        room = size + tensors * _ALIGNMENT + _PAGE
        # Private, since Linux has other rules for shared memory.
        self._memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel that was built without them
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        start = torch.frombuffer(self._memory, dtype=torch.uint8, count=1).data_ptr()
        self._used = -start % _PAGE

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of this shape, zero. Raises `ValueError` if it is empty or larger than the room that is left."""
        count = math.prod(shape)
        tensor = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._used).view(*shape)
        self._used += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return tensor
