"""Where the arguments of a test come from: a seeded generator, or Hypothesis (`hypothesis_picks.py`).

The samplers of `cases` are written once against `Picks`, and serve both.
"""

from __future__ import annotations

import math

import numpy as np
import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SPECIAL = (0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 1e-40, -6e-8, 3e38, -3e38, 65504.0, 1.0, -1.0)
STRIDES = ("contiguous", "transposed", "sliced", "step", "expanded")


def restride(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """The same shape over other memory: the same values too, but for "expanded", which repeats the first row."""
    if tensor.dim() == 0 or kind == "contiguous":
        return tensor
    if kind == "expanded":
        return tensor[:1].expand(tensor.shape) if tensor.shape[0] else tensor
    if kind == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    step = 2 if kind == "step" else 1
    room = tensor.new_zeros([step * size + 3 for size in tensor.shape])
    view = room[tuple(slice(2, 2 + step * size, step) for size in tensor.shape)]
    return view.copy_(tensor)


def leading(picks: Picks, tokens: int) -> tuple[int, ...]:
    """A shape of 0 to 3 dimensions that holds this many tokens."""
    shapes = [(tokens,), (1, tokens), (tokens, 1), (1, tokens, 1)]
    if tokens == 1:
        shapes.append(())
    if tokens % 2 == 0:
        shapes += [(2, tokens // 2), (tokens // 2, 1, 2)]
    return picks.choice(shapes)


def bytes_for(d: int) -> int:
    return (d + 7) // 8


class Picks:
    """Random arguments from a seed."""

    #: Whether floats may be infinite, NaN or huge; samplers leave those out where their order of evaluation is free.
    special = False
    #: Whether weights may be float8, for which PyTorch itself, opcheck included, has few operators.
    float8 = False

    def __init__(self, seed: int = 0):
        self.random = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def choice(self, options):
        return options[self.integer(0, len(options) - 1)]

    def maybe(self, make):
        return make() if self.choice((False, True)) else None

    def floats(self, shape, dtype: torch.dtype | None = None, *, special: bool = True) -> torch.Tensor:
        values = torch.from_numpy(self.random.standard_normal(tuple(shape)))
        return self.laid_out(values.to(dtype or self.choice(FLOATS)))

    def bools(self, shape) -> torch.Tensor:
        return self.laid_out(torch.from_numpy(self.random.random(tuple(shape)) < 0.5))

    def bits(self, shape) -> torch.Tensor:
        """Random bytes, or few distinct ones so that distances tie."""
        few = self.choice((None, [0, 1, 3, 255]))
        values = self.random.integers(0, 256, tuple(shape)) if few is None else self.random.choice(few, tuple(shape))
        return self.laid_out(torch.from_numpy(values.astype(np.uint8)))

    def integers(self, shape, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(self.random.integers(low, high + 1, tuple(shape))).to(dtype)

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor
