"""How an operator is registered: once, for every device and backend.

An operator is a schema plus a `meta` function that checks the arguments and tells the shape and dtype of each
result. From these two come the fake (for torch.compile), the implementation (check, allocate, call the backend
chosen at run time) and, where asked for, the `<name>_out` variant that writes into given tensors.

Backends therefore never check and never allocate results: they receive the schema's arguments followed by the
result tensors, contiguous and of the right shape, dtype and device.

Public functions reach operators through `direct.calls`: `torch.ops.btr.*`, or the implementation itself where nothing
wants to see the operator. What a call's arguments give, as long as it is not wrong, is remembered there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import backends, checks
from . import direct

_overlaps = torch._C._overlaps

_library = torch.library.Library("btr", "DEF")

#: Names of the operators defined so far, without the `_out` variants: what a backend may have kernels for.
OPERATORS: list[str] = []

#: True when BTR_DEBUG=1: values inside tensors (lengths, slots) are then checked on GPUs too, with a host sync.
CHECK_GPU_VALUES = os.environ.get("BTR_DEBUG", "0") == "1"


#: Argument shapes and dtypes remembered for an operator: a model has tens of them, varying lengths have any number.
_REMEMBERED = 1024


class Result(NamedTuple):
    """Shape and dtype of one result; its device is that of the operator's first tensor."""

    shape: Sequence[int]
    dtype: torch.dtype


def define(
    name: str,
    arguments: str,
    meta: Callable[..., list[Result]],
    *,
    results: int = 1,
    check_values: Callable[..., None] | None = None,
    out: bool = False,
) -> None:
    """Register `btr::<name>(arguments)` with `results` tensor results.

    `meta(*args)` raises ValueError or TypeError on wrong arguments. `check_values(*args)` reads tensor contents:
    it runs on the CPU always and on other devices only under BTR_DEBUG=1. `out=True` adds `btr::<name>_out`,
    whose last arguments are the results to write. The first argument is always a tensor.
    """

    def run(args: tuple, outs: Sequence[Tensor]) -> None:
        device = args[0].device
        if check_values is not None and (device.type == "cpu" or CHECK_GPU_VALUES):
            check_values(*args)
        backends.resolve(name, device)(*args, *outs)

    def allocate(like: Tensor, expected: Sequence[Result]) -> list[Tensor]:
        # Sizes one by one: PyTorch takes a third longer to read them from a tuple.
        return [
            like.new_empty(*shape, dtype=dtype) if shape else like.new_empty((), dtype=dtype)
            for shape, dtype in expected
        ]

    def returned(outs: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        return outs[0] if results == 1 else tuple(outs)

    def implementation(*args):
        outs = allocate(args[0], meta(*args))
        run(args, outs)
        return returned(outs)

    def fake(*args):
        return returned(allocate(args[0], meta(*args)))

    remembered: dict[tuple, Sequence[Result]] = {}

    def remember(key: tuple, expected: Sequence[Result]) -> None:
        if len(remembered) >= _REMEMBERED:
            remembered.clear()
        remembered[key] = expected

    def call(*args):
        key = direct.key(args)
        if key is None:
            return operator(*args)
        expected = remembered.get(key)
        if expected is None:
            expected = meta(*args)
            remember(key, expected)
        outs = allocate(args[0], expected)
        run(args, outs)
        return returned(outs)

    OPERATORS.append(name)
    returns = "Tensor" if results == 1 else "(" + ", ".join(["Tensor"] * results) + ")"
    operator = _register(f"{name}({arguments}) -> {returns}", implementation, fake)
    setattr(direct.calls, name, call)
    if not out:
        return

    def check_out(args: tuple, outs: tuple) -> Sequence[Result]:
        """Raise if the outputs cannot hold the results."""
        all_expected = meta(*args)
        for tensor, expected in zip(outs, all_expected, strict=True):
            _check_out(tensor, expected, args[0].device)
        return all_expected

    def write(args: tuple, outs: tuple) -> None:
        if not _writable_in_place(args, outs):
            written = [torch.empty_like(o, memory_format=torch.contiguous_format) for o in outs]
            run(args, written)
            for o, w in zip(outs, written, strict=True):
                o.copy_(w)
            return
        run(args, outs)
        for o in outs:
            if not o.is_inference():  # has no versions
                increment_version(o)

    def out_implementation(*args):
        check_out(args[:-results], args[-results:])
        write(args[:-results], args[-results:])

    def out_fake(*args):
        check_out(args[:-results], args[-results:])

    def out_call(*args):
        key = direct.key(args)
        if key is None:
            out_operator(*args)
            return
        if key not in remembered:  # the outputs make it another key than that of a call without them
            remember(key, check_out(args[:-results], args[-results:]))
        write(args[:-results], args[-results:])

    names = ["out"] if results == 1 else [f"out{i}" for i in range(results)]
    written = ", ".join(f"Tensor({chr(97 + i)}!) {n}" for i, n in enumerate(names))
    out_operator = _register(f"{name}_out({arguments}, {written}) -> ()", out_implementation, out_fake)
    setattr(direct.calls, f"{name}_out", out_call)


def _register(schema: str, implementation: Callable, fake: Callable) -> torch._ops.OpOverload:
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"btr::{name}", fake, lib=_library)
    return getattr(torch.ops.btr, name).default


def register_autograd(name: str, setup_context: Callable, backward: Callable) -> None:
    """Gradients of `btr::<name>`; only for operators that have them, since the formula costs 6 us a call."""
    torch.library.register_autograd(f"btr::{name}", backward, setup_context=setup_context, lib=_library)


def _writable_in_place(args: tuple, outs: tuple) -> bool:
    """Whether a kernel can write into the outputs while it reads the arguments."""
    for o in outs:
        if not o.is_contiguous():
            return False
        for value in args:
            if isinstance(value, Tensor) and _overlaps(o, value):
                return False
    return True


def _check_out(out: Tensor, expected: Result, device: torch.device) -> None:
    shape, dtype = expected
    checks.has_dtype("out", out, (dtype,))
    if out.shape != shape:
        raise ValueError(f"out: expected shape {tuple(shape)}, got {tuple(out.shape)}")
    if out.device != device:
        raise ValueError(f"out: expected device {device}, got {out.device}")
