"""The timing loop: contenders take turns in one run, on inputs that cache cannot hold unless a case says so."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

#: Fewer rounds than this give no median worth reporting, whatever the time budget says.
MIN_ROUNDS = 5
#: More rounds add nothing to a median.
MAX_ROUNDS = 500
#: A sample repeats short calls until it lasts this long, so that reading two clocks does not count.
SAMPLE_SECONDS = 500e-6
#: A call longer than this needs no second one to tell that a sample is one call.
LONG_SECONDS = 20 * SAMPLE_SECONDS
#: Between two uses of an input by one contender the others work on other inputs, but may touch only the half of a
#: set that they need; with this many caches' worth of inputs everything has left the cache when its turn comes again.
POOL_CACHES = 4


@dataclass(frozen=True)
class Clock:
    """Seconds that have passed, and seconds that all threads of the process have computed."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    sleep: Callable[[float], object] = time.sleep


SYSTEM_CLOCK = Clock()


@dataclass
class Timing:
    """Seconds a call, one entry a round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def median(self, clock: str) -> float:
        return statistics.median(getattr(self, clock))

    def spread(self, clock: str) -> float:
        """Interquartile range in percent of the median."""
        samples = getattr(self, clock)
        if len(samples) < 2:
            return 0.0
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return 100 * (high - low) / middle if middle else 0.0


class Pool(Generic[T]):
    """Sets of inputs handed out in turn, to whichever contender asks."""

    def __init__(self, sets: Sequence[T]):
        self.sets = sets
        self._next = 0

    def __len__(self) -> int:
        return len(self.sets)

    def next(self) -> T:
        chosen = self.sets[self._next % len(self.sets)]
        self._next += 1
        return chosen


def pool_size(set_bytes: int, cache_bytes: int, in_cache: bool) -> int:
    """How many sets of inputs a case rotates through."""
    return 1 if in_cache else max(1, math.ceil(POOL_CACHES * cache_bytes / max(set_bytes, 1)))


def alternate(
    contenders: Mapping[str, Callable[[T], object]],
    pool: Pool[T],
    seconds: float,
    clock: Clock = SYSTEM_CLOCK,
    *,
    warm: int = 0,
    settle: float = 0.0,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
) -> dict[str, Timing]:
    """Time all contenders in rounds, each round in another order, until `seconds` have passed.

    Args:
        contenders: calls that take a set of inputs.
        pool: where every call takes its inputs from.
        seconds: when to stop, unless `min_rounds` or `max_rounds` say otherwise.
        clock: what tells the time.
        warm: calls before every sample, untimed, since the other contenders have used the cache meanwhile, what they
            wrote has yet to leave it at the expense of bandwidth, and threads have to wake up.
        settle: seconds to sleep before that: OpenMP's threads spin for a while after a call, at the expense of
            a contender that has threads of its own.
        min_rounds, max_rounds: bounds on the number of rounds.

    Returns:
        A Timing for every contender, all with the same number of rounds.
    """
    start = clock.wall()
    repeats = {name: _repeats(run, pool, clock) for name, run in contenders.items()}
    timings = {name: Timing() for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done, order in enumerate(_orders(list(contenders))):
            if done >= max_rounds or (done >= min_rounds and clock.wall() - start >= seconds):
                return timings
            for name in order:
                if settle:
                    clock.sleep(settle)
                for _ in range(warm):
                    contenders[name](pool.next())
                wall, cpu = _sample(contenders[name], pool, repeats[name], clock)
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    finally:
        if collecting:
            gc.enable()


def _orders(names: list[str]) -> Iterator[list[str]]:
    """All rotations in turn, so that nobody always runs right after the same other."""
    while True:
        yield list(names)
        names.append(names.pop(0))


def _sample(run: Callable[[T], object], pool: Pool[T], repeats: int, clock: Clock) -> tuple[float, float]:
    wall, cpu = clock.wall(), clock.cpu()
    for _ in range(repeats):
        run(pool.next())
    cpu, wall = clock.cpu() - cpu, clock.wall() - wall
    return wall / repeats, cpu / repeats


def _repeats(run: Callable[[T], object], pool: Pool[T], clock: Clock) -> int:
    """Warm up, and how often a sample calls: never a second time on a set that may still be in cache."""
    wall, _ = _sample(run, pool, 1, clock)
    if wall > LONG_SECONDS:
        return 1
    wall, _ = _sample(run, pool, 1, clock)
    enough = max(1, math.ceil(SAMPLE_SECONDS / max(wall, 1e-9)))
    return enough if len(pool) == 1 else min(enough, len(pool))
