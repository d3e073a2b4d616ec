"""Triton kernels, a file per operator: `<operator>.py` with a function of that name is that operator's kernel.

Nothing here imports Triton until a kernel is asked for.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec

import torch

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

DEVICES = ("cuda", "cpu") if _INTERPRETED else ("cuda",)


def why_not() -> str | None:
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if not _INTERPRETED and not torch.cuda.is_available():
        return "torch finds no CUDA device (TRITON_INTERPRET=1 runs the kernels slowly on the CPU, for tests)"
    return None


def kernel(operator: str) -> Callable[..., None] | None:
    if find_spec(f"{__name__}.{operator}") is None:
        return None
    return getattr(importlib.import_module(f".{operator}", __name__), operator)
