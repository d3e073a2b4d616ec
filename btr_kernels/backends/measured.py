"""Which of several GPU backends `auto` takes: the one that was measured to be faster, by operator, kind and size.

`measured.json` is part of the package and holds what result files of `make gpu` say, put there by `bench/gpu/ship.py`:
{GPU: {operator: {kind: [[size, backend], ...]}}}, sizes in increasing order. The size of a call is the number of
elements of its first argument (of `restore_bits` the second), and the nearest measured one (by ratio) decides. The kind
is what else a kernel's speed depends on, a dtype or a precision; "" for operators without. What was not measured goes
to the first of the backends in the order of `auto`. Anything in the file that cannot be used counts as not measured.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import torch

SHIPPED = Path(__file__).with_name("measured.json")

Kernel = Callable[..., None]

#: Where an operator's arguments hold its kind: a tensor's dtype, or the argument itself.
_KINDS: dict[str, tuple[int, bool]] = {
    "pack_bits": (0, True),
    "unpack_bits": (5, False),
    "restore_bits": (2, False),
    "binarize": (0, True),
    "sign_scale": (0, True),
    "sign_scale_backward": (0, True),
    "merge_tokens": (0, True),
    "merge_tokens_backward": (0, True),
    "unpack_matmul": (1, True),
    "unpack_matmul_backward": (2, True),
    "unpack_geglu": (1, True),
    "unpack_matmul_prepared": (3, False),
    "unpack_geglu_prepared": (3, False),
}

#: Whose size is not that of the first argument.
_SIZED_BY = {"restore_bits": 1}


def kind_of(operator: str, args: tuple) -> torch.dtype | str:
    """The kind of a call; a key of the file is its text, for a dtype without "torch."."""
    place = _KINDS.get(operator)
    if place is None:
        return ""
    return args[place[0]].dtype if place[1] else args[place[0]]


def size_of(operator: str, args: tuple) -> int:
    """The size of a call."""
    return args[_SIZED_BY.get(operator, 0)].numel()


def choice(gpu: str, operator: str, kernels: Mapping[str, Kernel]) -> Kernel:
    """The kernel to call on a GPU of that name: one of `kernels` (by backend, the preferred first), or what chooses
    between them by the arguments of each call."""
    first = next(iter(kernels.values()))
    tables = {}
    for kind, entries in _entries(gpu, operator).items():
        if table := _table(entries, kernels):
            # "int8" may be a precision or a dtype: an operator asks for one of them.
            tables[kind] = tables[getattr(torch, kind, kind)] = table
    if all(kernel is first for _, chosen in tables.values() for kernel in chosen):
        return first

    def run(*args) -> None:
        table = tables.get(kind_of(operator, args))
        kernel = first if table is None else table[1][bisect_right(table[0], size_of(operator, args))]
        kernel(*args)

    return run


def _entries(gpu: str, operator: str) -> dict:
    try:
        found = json.loads(SHIPPED.read_text(encoding="utf-8"))[gpu][operator]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(entries: object, kernels: Mapping[str, Kernel]) -> tuple[list[float], list[Kernel]] | None:
    """Bounds between sizes, and the kernel below, between and above them; None if the entries cannot be used."""
    try:
        pairs = [(int(size), kernels[backend]) for size, backend in entries]
    except (TypeError, ValueError, KeyError):
        return None
    sizes = [size for size, _ in pairs]
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
        return None
    return [math.sqrt(a * b) for a, b in pairwise(sizes)], [kernel for _, kernel in pairs]
