"""One row per GPU kernel: what a new kernel adds here to get all the tests of this directory.

Results are tested against the operator's row in `tests/kernels/cases.py`, which also samples the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

#: Vectors of 16 bytes, whatever the cache hints between: the fast path of anything that memory bounds.
LOADS_128 = r"LDG\.E(\.\w+)*\.128\b"
STORES_128 = r"STG\.E(\.\w+)*\.128\b"


@dataclass(frozen=True)
class Row:
    """A kernel and what its fast path must be made of.

    Attributes:
        examples: () -> argument tuples of the operator that take the fast path, one for each kind of machine code.
        instructions: patterns, each of which the machine code of every example must contain.
        cuda: the name of the CUDA kernel of the fast path, of which every instance must contain them too.
        dtypes: those that the arguments and results of its tests must have covered together.
        exact: whether results equal the reference's to the bit; else they are within the operator's tolerance.
    """

    examples: Callable[[], list[tuple]]
    instructions: tuple[str, ...]
    cuda: str | None
    dtypes: tuple[torch.dtype, ...]
    exact: bool = False


def _pack_bits() -> list[tuple]:
    return [(torch.ones(64, 768, dtype=dtype),) for dtype in (*FLOATS, torch.bool)]


def _unpack_bits() -> list[tuple]:
    bits, ones = torch.zeros(64, 96, dtype=torch.uint8), torch.ones(768)
    return [(bits, 768, ones, ones, torch.ones(64), dtype) for dtype in FLOATS]


ROWS = {
    "pack_bits": Row(_pack_bits, (LOADS_128,), "pack_sequence", (*FLOATS, torch.bool, torch.uint8), exact=True),
    "unpack_bits": Row(_unpack_bits, (STORES_128,), "unpack_vectors", (*FLOATS, torch.uint8), exact=True),
}

#: Channels at the boundaries of bytes, words, vectors, warp tiles and Triton tiles.
CHANNELS = (1, 7, 8, 9, 24, 31, 33, 100, 127, 128, 129, 256, 264, 384, 768, 1000, 1024)
#: Tokens for each of them. The last sizes make the grid stride, on the emulator too.
TOKENS = (0, 1, 33)
LARGE = {520: (1000,), 131: (600,)}
SEEDS = 2
