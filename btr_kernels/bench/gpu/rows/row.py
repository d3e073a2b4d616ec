"""What a row of the GPU table is: an operator at one size, its peers, its limit and its targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from ...case import Target

Inputs = SimpleNamespace
Run = Callable[[Inputs], object]

CUBLAS = "cuBLAS bf16, unpacked before"
UNPACK_CUBLAS = "torch unpack + cuBLAS bf16"
#: cuBLAS at the weight's own 8 bits, by PyTorch's private names for it. They do less: no factors of the outputs.
CUBLAS_INT8, CUBLAS_FP8 = "cuBLAS int8, unpacked before", "cuBLAS fp8, unpacked before"
CUBLAS_FLOAT = "cuBLAS float32, unpacked before"
EAGER, COMPILED = "torch eager", "torch.compile"


@dataclass(frozen=True, eq=False)
class Row:
    """An operator at one size.

    Attributes:
        name: unique.
        make: (generator, device) -> a set of inputs, outputs included.
        ours: the operator on such a set, under the backend in force; what it returns is compared with `expected`.
        expected: the same by the reference.
        peers: other ways to the same result, or to less of it, by name.
        bytes: that a call must move if every operand is moved once.
        operations: of the definition, a multiply-add counting 2, bounded by the rate of `arithmetic`.
        arithmetic: a dtype's name: of the measured matmul that the operations are compared with (`timing.limits`).
        tolerance: largest relative Frobenius error against `expected`; 0 for integers.
        targets: a ratio to one of `peers`, or without peers the part of the limit.
        needs: the least compute capability, in tens.
        operators, kind, size: what `auto` learns from the row (`backends.measured`): the operators that `ours` calls,
            and the kind and size of their calls.
    """

    name: str
    make: Callable[[torch.Generator, torch.device], Inputs]
    ours: Run
    expected: Run
    peers: Mapping[str, Run]
    bytes: int
    operations: int = 0
    arithmetic: str = "bfloat16"
    tolerance: float = 0.0
    targets: tuple[Target, ...] = ()
    needs: int = field(default=0, kw_only=True)
    operators: tuple[str, ...] = field(default=(), kw_only=True)
    kind: str = field(default="", kw_only=True)
    size: int = field(default=0, kw_only=True)

    def verify(self, inputs: Inputs, run: Run | None = None) -> None:
        """Raise AssertionError unless ours, or `run` in its place, gives what the reference gives."""
        for got, expected in zip(_tensors((run or self.ours)(inputs)), _tensors(self.expected(inputs)), strict=True):
            assert got.shape == expected.shape, f"{self.name}: {tuple(got.shape)}, expected {tuple(expected.shape)}"
            if got.is_floating_point():
                norm = torch.linalg.vector_norm(expected.double())
                error = float(torch.linalg.vector_norm(got.double() - expected.double()) / norm.clamp(min=1e-30))
            else:
                error = float((got != expected).double().mean())
            assert error <= self.tolerance, f"{self.name}: error {error:.3g}, allowed is {self.tolerance:.3g}"


def _tensors(value: object) -> list[Tensor]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [v for v in values if isinstance(v, Tensor)]


def normal(generator: torch.Generator, device: torch.device, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def random_bits(generator: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator, device=device, dtype=torch.uint8)


def sets_past(cache: int, row: Row, room: int) -> int:
    """How many sets of inputs together exceed the cache four times, within `room` bytes of memory (inputs of peers
    are up to 16 times larger) and 128 sets."""
    return max(1, min(128, math.ceil(4 * cache / row.bytes), room // (20 * row.bytes)))
