"""Which implementation runs an operator: chosen by name, or by device when the choice is "auto".

A backend is a module with
- `DEVICES`: the device types whose tensors it takes,
- `why_not() -> str | None`: why it cannot run here, or None if it can,
- `kernel(operator) -> callable | None`: its implementation of an operator, called with the operator's arguments
  followed by the result tensors to fill (see `btr_kernels.ops.define`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import ContextDecorator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from . import measured

NAMES = ("reference", "cpu", "triton", "cuda")
#: What "auto" tries, in order, for tensors of a device type. Where several can run on a GPU, what was measured comes
#: before the order (`measured`).
_AUTO = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}

#: The names of the `use_backend` blocks that are open here, the innermost last.
_chosen: ContextVar[tuple[str, ...]] = ContextVar("btr_backend", default=())


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run in this process, if not why (`reason`), and if so which `operators` it has."""

    name: str
    available: bool
    reason: str
    devices: tuple[str, ...]
    operators: tuple[str, ...]


def _never_traced(function: Callable) -> Callable:
    """What `torch.compiler.disable` does, without importing the compiler, which takes longer than torch itself."""
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = "use_backend is opened when the function runs, not when it is compiled"
    return function


class use_backend(ContextDecorator):
    """Run operators on one backend within a `with` block (or a decorated function).

    Args:
        name: "reference", "cpu", "triton", "cuda" or "auto". "triton" takes CPU tensors when TRITON_INTERPRET=1
            was set before Triton was imported.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend cannot run here; the message says why. Only "auto" falls back.

    The choice is read inside the operator each time it runs, so it also holds for a compiled function called in
    the block. Opening a block inside a compiled function breaks the graph (an error under fullgraph=True).

    Example:
        >>> with use_backend("reference"):
        ...     bits = pack_bits(torch.randn(4, 768))
    """

    @_never_traced
    def __init__(self, name: str):
        self.name = _checked(name)

    @_never_traced
    def __enter__(self) -> use_backend:
        _chosen.set((*_chosen.get(), self.name))
        return self

    @_never_traced
    def __exit__(self, *exception) -> None:
        _chosen.set(_chosen.get()[:-1])

    def _recreate_cm(self) -> use_backend:
        return use_backend(self.name)


def current_backend() -> str:
    """The backend asked for by `use_backend` or, outside of it, by the environment variable BTR_BACKEND."""
    chosen = _chosen.get()
    return chosen[-1] if chosen else _default()


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, with whether it can run here and why not.

    Example:
        >>> backends()["reference"].available
        True
    """
    return {name: backend_status(name) for name in NAMES}


def backend_status(name: str) -> BackendStatus:
    """The entry of `backends` for one of `NAMES`."""
    from ..ops.define import OPERATORS  # not at the top: operators are defined with the help of this module

    module = _module(name)
    reason = module.why_not()
    operators = () if reason else tuple(op for op in OPERATORS if module.kernel(op) is not None)
    return BackendStatus(name, reason is None, reason or "", module.DEVICES, operators)


def resolve(operator: str, device: torch.device) -> Callable[..., None]:
    """The kernel that runs `operator` on tensors of `device` under the current choice of backend."""
    return _resolve(current_backend(), operator, device)


@cache  # by the device itself: asking for its type takes longer than the rest of the look-up
def _resolve(name: str, operator: str, device: torch.device) -> Callable[..., None]:
    device_type = device.type
    if name == "auto":
        if device_type not in _AUTO:
            raise ValueError(f"device: expected a tensor on {' or '.join(_AUTO)}, got {device_type}")
        kernels = _kernels(operator, _AUTO[device_type])
        if device_type == "cuda" and len(kernels) > 1:
            return measured.choice(torch.cuda.get_device_name(device), operator, kernels)
        return next(iter(kernels.values()))
    module = _module(name)
    if device_type not in module.DEVICES:
        raise ValueError(f"device: backend {name!r} takes tensors on {' or '.join(module.DEVICES)}, got {device_type}")
    kernel = module.kernel(operator)
    if kernel is None:
        raise NotImplementedError(f"backend {name!r} has no kernel for {operator} yet; use 'auto' or 'reference'")
    return kernel


def _kernels(operator: str, candidates: Sequence[str]) -> dict[str, Callable[..., None]]:
    """The kernels for an operator by backend: of those that can run here, or the reference's if there is none."""
    found = {}
    for candidate in candidates:
        module = _module(candidate)
        if module.why_not() is None and (kernel := module.kernel(operator)) is not None:
            found[candidate] = kernel
    return found if len(found) == 1 else {name: kernel for name, kernel in found.items() if name != "reference"}


def _checked(name: str) -> str:
    if name not in (*NAMES, "auto"):
        raise ValueError(f"backend: expected one of {', '.join((*NAMES, 'auto'))}, got {name!r}")
    if name != "auto" and (reason := _module(name).why_not()) is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
    return name


@cache
def _default() -> str:
    return _checked(os.environ.get("BTR_BACKEND", "auto"))


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __name__)
