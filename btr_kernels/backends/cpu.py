"""C++ kernels for CPU tensors (`csrc/`), threaded with torch's own pool.

The instruction set is chosen in C++ (`csrc/core/isa.h`).
"""

from __future__ import annotations

from collections.abc import Callable

from . import native

DEVICES = ("cpu",)


def why_not() -> str | None:
    module, reason = native.load()
    return None if module else reason


def kernel(operator: str) -> Callable[..., None] | None:
    return native.CALLS.get(operator)
