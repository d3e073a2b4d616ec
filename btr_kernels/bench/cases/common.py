"""What the rows of all families share: sizes, random inputs, names."""

from __future__ import annotations

import torch

#: Channels of T5 base and large.
BASE, LARGE = 768, 1024
EPS, CLAMP = 1e-6, 2.0
#: Relative error that float32 sums of a few thousand terms may show when only their order differs.
ROUNDING = 1e-5

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
Generator = torch.Generator


def normal(g: Generator, *shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(shape, generator=g).to(dtype)


def codes(g: Generator, *shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=g, dtype=torch.uint8)


def scale(g: Generator, d: int) -> torch.Tensor:
    return torch.rand(d, generator=g) + 0.5


def title(operator: str, what: str, size: str, in_cache: bool = False) -> str:
    return " ".join(filter(None, (operator, what, size, "in cache" if in_cache else "")))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
