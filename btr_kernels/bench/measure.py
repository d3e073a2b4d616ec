"""Measuring a case: what every row of a report carries."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass

import torch

from .case import Case, Inputs, Traffic, Verdict, nbytes
from .machine import Limits, cache_bytes
from .timing import SYSTEM_CLOCK, Clock, Pool, Timing, alternate, pool_size

#: Of the input generators, so that a repeated run measures the same inputs.
SEED = 20240131
#: Sets of inputs that share what stays in cache and differ in the rest.
FRESH_SETS = 64
#: Calls before a sample of a case that stays in cache: weights of 12 MB that three contenders have displaced are back
#: in a cache of 32 MB after four (196, 174, 155 and 126 us after none, one, two and four; 117 alone).
WARM_CALLS_IN_CACHE = 4
#: Before a sample on several threads: longer than threads of an earlier contender spin for work that does not come.
SETTLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Time:
    """Median seconds a call and the interquartile range in percent of it, by wall clock and by CPU time."""

    wall: float
    wall_spread: float
    cpu: float
    cpu_spread: float

    @classmethod
    def of(cls, timing: Timing) -> Time:
        return cls(timing.median("wall"), timing.spread("wall"), timing.median("cpu"), timing.spread("cpu"))


@dataclass(frozen=True)
class Result:
    """A measured case.

    Attributes:
        threads: how many it ran on.
        clock: "cpu" (time of all threads) or "wall": what `seconds`, ratios, rates and `percent_of_limit` are of.
        sets: how many sets of inputs were rotated through (1: in cache, or one set larger than every cache).
        limit: name of the limit that bounds the case; `limit_seconds` is the time that it allows.
        missing: peers that could not run, with the reason.
        command: repeats this row alone.
        environment: versions and machine in one line.
    """

    case: Case
    threads: int
    clock: str
    ours: Time
    baseline: Time
    peers: dict[str, Time]
    missing: dict[str, str]
    rounds: int
    sets: int
    limit: str
    limit_seconds: float
    command: str
    environment: str

    def seconds(self, time: Time) -> float:
        return getattr(time, self.clock)

    @property
    def spread(self) -> float:
        return getattr(self.ours, f"{self.clock}_spread")

    @property
    def vs_baseline(self) -> float:
        """How many times faster than the PyTorch baseline."""
        return self.seconds(self.baseline) / self.seconds(self.ours)

    @property
    def verdicts(self) -> list[Verdict]:
        """The row's targets, as far as their peers ran. Targets are about one thread."""
        found = []
        for target in self.case.targets if self.threads == 1 else ():
            if not target.peers:
                value = self.percent_of_limit / 100
                found.append(Verdict(self.limit, True, value, target.value, target.stretch))
            elif ran := [name for name in target.peers if name in self.peers]:
                best = min(ran, key=lambda name: self.seconds(self.peers[name]))
                value = self.seconds(self.peers[best]) / self.seconds(self.ours)
                found.append(Verdict(best, False, value, target.value, target.stretch))
        return found

    @property
    def best_peer(self) -> str | None:
        return min(self.peers, key=lambda name: self.seconds(self.peers[name]), default=None)

    @property
    def vs_best_peer(self) -> float | None:
        """How many times faster than the fastest peer."""
        best = self.best_peer
        return None if best is None else self.seconds(self.peers[best]) / self.seconds(self.ours)

    @property
    def percent_of_limit(self) -> float:
        return 100 * self.limit_seconds / self.seconds(self.ours)

    @property
    def bytes_per_second(self) -> float:
        return self.case.bytes.total / self.seconds(self.ours)

    @property
    def operations_per_second(self) -> float:
        return self.case.operations / self.seconds(self.ours)

    def as_dict(self) -> dict[str, object]:
        """The row as JSON holds it."""
        case = self.case
        return {
            "name": case.name,
            "operator": case.operator,
            "threads": self.threads,
            "in_cache": case.in_cache,
            "input_sets": self.sets,
            "bytes": {**Traffic._asdict(case.bytes), "total": case.bytes.total},
            "operations": case.operations,
            "clock": self.clock,
            "rounds": self.rounds,
            "seconds": {
                "ours": asdict(self.ours),
                "baseline": asdict(self.baseline),
                "peers": {name: asdict(time) for name, time in self.peers.items()},
            },
            "missing_peers": self.missing,
            "ratio_to_baseline": self.vs_baseline,
            "best_peer": self.best_peer,
            "ratio_to_best_peer": self.vs_best_peer,
            "limit": self.limit,
            "limit_seconds": self.limit_seconds,
            "percent_of_limit": self.percent_of_limit,
            "bytes_per_second": self.bytes_per_second,
            "operations_per_second": self.operations_per_second,
            "targets": [verdict.as_dict() for verdict in self.verdicts],
            "spread_percent": self.spread,
            "environment": self.environment,
            "command": self.command,
        }


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        seconds_per_case: for all contenders of a case together.
        clock: "cpu" or "wall"; that of the `Limits` too.
        command: the command line without the choice of cases.
        environment: versions and machine in one line.
    """

    seconds_per_case: float
    clock: str = "cpu"
    command: tuple[str, ...] = ()
    environment: str = ""


def input_pool(case: Case, timed: bool = True) -> Pool[Inputs]:
    """The sets of inputs that a case rotates through, the first one checked; without timing one is enough.

    Raises:
        WrongResult: ours or a peer disagrees with the baseline.
        NotImplementedError: the backend in force has no kernel for the operator.
    """
    generator = torch.Generator().manual_seed(SEED)
    first = case.make_inputs(generator)
    case.verify(first)
    if not timed:
        return Pool([first])
    if case.fresh:
        return Pool([first, *(case.fresh(first, generator) for _ in range(FRESH_SETS - 1))])
    count = pool_size(nbytes(first), cache_bytes(), case.in_cache)
    return Pool([first, *(case.make_inputs(generator) for _ in range(count - 1))])


def measure(
    case: Case, limits: Limits, settings: Settings, pool: Pool[Inputs] | None = None, clock: Clock = SYSTEM_CLOCK
) -> Result:
    """Time the contenders of a case against each other, on the threads that are in force: those of `limits`.

    `pool` is that of `input_pool`, made here if it is not given, with what that raises.
    """
    pool = pool or input_pool(case)
    several = limits.threads > 1
    timings = alternate(
        case.contenders(),
        pool,
        settings.seconds_per_case,
        clock,
        warm=WARM_CALLS_IN_CACHE if case.in_cache else 1,
        settle=SETTLE_SECONDS if several else 0.0,
    )
    limit, limit_seconds = limits.of(case)
    times = {name: Time.of(timing) for name, timing in timings.items()}
    return Result(
        case=case,
        threads=limits.threads,
        clock=settings.clock,
        ours=times.pop("ours"),
        baseline=times.pop("baseline"),
        peers=times,
        missing=case.missing_peers(),
        rounds=len(timings["ours"].wall),
        sets=len(pool),
        limit=limit.name,
        limit_seconds=limit_seconds,
        command=shlex.join((*settings.command, "--cases", case.name)),
        environment=settings.environment,
    )
