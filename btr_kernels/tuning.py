"""Thresholds by which operators on the CPU choose between kernels that give the same results.

Defaults are measured for each instruction set (`csrc/core/tuning.inl`). The environment variable BTR_TUNING overrides
them, as in BTR_TUNING="matmul.dot_max_tokens=8,bits.streaming_bytes=1048576", and so does `use_thresholds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from .backends import native


@dataclass(frozen=True)
class Threshold:
    """A threshold's value, its default on the instruction set in use, its least possible value, what it selects."""

    value: int
    default: int
    least: int
    selects: str


def thresholds() -> dict[str, Threshold]:
    """All thresholds by name; empty where the package was not compiled.

    Example:
        >>> thresholds()["matmul.dot_max_tokens"].value
        16
    """
    module, _ = native.load()
    return {} if module is None else {name: Threshold(**row) for name, row in module.tuning().items()}


@contextmanager
def use_thresholds(values: Mapping[str, int]) -> Iterator[None]:
    """Within the block operators of the whole process, on all threads, choose by these thresholds.

    Raises:
        RuntimeError: the package was not compiled; the message says why.
        ValueError: no such threshold, or it cannot have this value.

    Example:
        >>> with use_thresholds({"matmul.dot_max_tokens": 0}):
        ...     y = unpack_matmul(bits, weight)  # by lookup tables, for any number of tokens
    """
    module, reason = native.load()
    if module is None:
        raise RuntimeError(reason)
    before = thresholds()
    try:
        for name, value in values.items():
            module.set_tuning(name, value)
        yield
    finally:
        for name in values:
            if name in before:
                row = before[name]
                module.set_tuning(name, None if row.value == row.default else row.value)
