"""What can run an operator here: every backend, and the cpu backend once for each instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import btr_kernels as bk


class Implementation(NamedTuple):
    backend: str
    isa: str | None = None

    def __str__(self) -> str:
        return self.backend if self.isa is None else f"{self.backend}-{self.isa}"


def implementations() -> list[Implementation]:
    """Those that take CPU tensors in this process, the reference first."""
    found = []
    for name, status in bk.backends().items():
        if status.available and "cpu" in status.devices:
            found += [Implementation(name, isa) for isa in native().isas()] if name == "cpu" else [Implementation(name)]
    return sorted(found, key=lambda i: i.backend != "reference")


def native():
    """The compiled module; only where the cpu backend is available."""
    from btr_kernels import _C

    return _C


@contextmanager
def running(implementation: Implementation) -> Iterator[None]:
    """Within the block operators run on this implementation, and on no other."""
    before = None if implementation.isa is None else native().isa()
    if implementation.isa is not None:
        native().set_isa(implementation.isa)
    try:
        with bk.use_backend(implementation.backend):
            yield
    finally:
        if before is not None:
            native().set_isa(before)


def has(implementation: Implementation, operator: str) -> bool:
    """Whether there is a kernel of the operator."""
    from importlib import import_module

    return import_module(f"btr_kernels.backends.{implementation.backend}").kernel(operator) is not None
