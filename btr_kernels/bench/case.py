"""What a row of the benchmark is: inputs, the contenders that run on them, and the work that the row counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..matmul import PreparedWeight

#: One set of inputs, outputs and scratch space of a case, by name.
Inputs = SimpleNamespace
Run = Callable[[Inputs], object]


class WrongResult(AssertionError):
    """A contender of a case does not compute what the baseline computes."""


class Traffic(NamedTuple):
    """Bytes that a call must move if every operand is moved once."""

    read: int
    written: int

    @property
    def total(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Peer:
    """The strongest other way to the same result that is at hand.

    Attributes:
        run: the call. What it returns must equal the leading results of the operator; None where it does only a
            part of the operator's work, so that there is nothing to compare.
        module: the module it needs, if that is not a dependency of the package.
        package: the name under which that module is installed.
        unsuited: why it would be no peer on this machine, or None if it is one.
    """

    run: Run
    module: str | None = None
    package: str | None = None
    unsuited: Callable[[], str | None] | None = None

    def why_not(self) -> str | None:
        """Why it cannot run here, or None if it can."""
        if self.module is not None and find_spec(self.module) is None:
            return f"{self.package or self.module} is not installed"
        return self.unsuited() if self.unsuited else None


@dataclass(frozen=True)
class Target:
    """What a row shall reach on one thread.

    Attributes:
        value: times faster than the fastest of `peers`, or without peers the part of the row's limit.
        stretch: the same, when all goes well.
        peers: names of peers of the row.
    """

    value: float
    stretch: float
    peers: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """A target and what was measured against it; `against` is the name of the peer, or of the limit."""

    against: str
    of_limit: bool
    value: float
    target: float
    stretch: float

    @property
    def met(self) -> bool:
        return self.value >= self.target

    @property
    def short_percent(self) -> float:
        """By how much the measured value misses the target; 0 if it does not."""
        return max(0.0, 100 * (1 - self.value / self.target))

    def as_dict(self) -> dict[str, object]:
        return {**self._asdict(), "met": self.met, "short_percent": self.short_percent}


@dataclass(frozen=True, eq=False)
class Case:
    """A row of the benchmark: one operator at one size.

    Attributes:
        name: unique; says the operator, what is special, and the size.
        operator: the public function that the row measures.
        make_inputs: a new set of inputs, with outputs allocated, from a generator.
        ours: the operator on a set of inputs, under the backend in force.
        baseline: the same in plain PyTorch.
        peers: other implementations by name.
        bytes: traffic of one call.
        operations: arithmetic of one call, as the operator is defined (a multiply-add counts 2), however an
            implementation may get around doing it.
        limit: the bandwidth that bounds the row's traffic: "read", "write" or "copy".
        tolerance: largest allowed difference from the baseline: relative Frobenius error of floats, fraction of
            differing bits of packed results. Other integers must be equal.
        in_cache: repeat on one set of inputs, so that it stays in cache; otherwise sets are rotated through a pool
            larger than the last-level cache.
        fresh: for a case of which only a part stays in cache: another set of inputs that shares this part with the
            one given.
        targets: what the row shall reach.
        quick: part of the quick selection.
    """

    name: str
    operator: str
    make_inputs: Callable[[torch.Generator], Inputs]
    ours: Run
    baseline: Run
    peers: Mapping[str, Peer]
    bytes: Traffic
    operations: int
    limit: Literal["read", "write", "copy"]
    tolerance: float = 0.0
    in_cache: bool = False
    fresh: Callable[[Inputs, torch.Generator], Inputs] | None = None
    targets: tuple[Target, ...] = ()
    quick: bool = field(default=False, kw_only=True)

    def contenders(self) -> dict[str, Run]:
        """What can run here: "ours", "baseline" and the peers whose packages are installed."""
        peers = {name: peer.run for name, peer in self.peers.items() if peer.why_not() is None}
        return {"ours": self.ours, "baseline": self.baseline, **peers}

    def missing_peers(self) -> dict[str, str]:
        """Peers that cannot run here, with the reason."""
        return {name: reason for name, peer in self.peers.items() if (reason := peer.why_not()) is not None}

    def verify(self, inputs: Inputs) -> None:
        """Raise WrongResult unless ours and every peer agree with the baseline on `inputs`."""
        expected = _results(self.baseline(inputs))
        for name, run in self.contenders().items():
            if name == "baseline":
                continue
            got = _results(run(inputs))
            if name == "ours" and len(got) != len(expected):
                raise WrongResult(f"{self.name}: ours returns {len(got)} results, the baseline {len(expected)}")
            for index, (a, b) in enumerate(zip(got, expected, strict=False)):
                self._compare(f"{self.name}: result {index} of {name}", a, b)

    def _compare(self, what: str, got: Tensor, expected: Tensor) -> None:
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise WrongResult(
                f"{what} is {got.dtype} {tuple(got.shape)}, expected {expected.dtype} {tuple(expected.shape)}"
            )
        error, allowed = difference(got, expected), self.tolerance
        if not (got.is_floating_point() or got.dtype == torch.uint8):
            allowed = 0.0
        if not error <= allowed:
            raise WrongResult(f"{what} differs from the baseline by {error:.3g}, allowed is {allowed:.3g}")


def difference(got: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error of floats, fraction of differing bits of uint8, of differing entries otherwise."""
    if torch.equal(got, expected):
        return 0.0
    if got.is_floating_point():
        norm = torch.linalg.vector_norm(expected, dtype=torch.float64)
        return float(torch.linalg.vector_norm(got.double() - expected.double()) / norm)
    if got.dtype == torch.uint8:
        table = torch.tensor([bin(byte).count("1") for byte in range(256)])
        return float(table[(got ^ expected).int()].double().mean()) / 8
    return float((got != expected).double().mean())


def nbytes(inputs: Inputs) -> int:
    """Memory that a set of inputs takes, tensors counted once."""
    tensors = {}
    for value in vars(inputs).values():
        parts = [getattr(value, f.name) for f in fields(value)] if isinstance(value, PreparedWeight) else [value]
        for tensor in parts:
            if isinstance(tensor, Tensor):
                tensors[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(tensors.values())


def _results(value: object) -> tuple[Tensor, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, Tensor) else tuple(v for v in value if isinstance(v, Tensor))
