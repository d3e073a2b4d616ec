"""Wall time of the stages of reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

# In the order in which a reader goes through them; a form of the reader that has no such stage spends no time in it.
STAGES = ("fetch", "lower_layers", "restore", "joint_layers", "cross_projection", "decoding")


class StageClock:
    """Adds up the seconds spent in each stage.

    >>> clock = StageClock()
    >>> with clock("fetch"):
    ...     pass
    >>> list(clock.seconds) == list(STAGES)
    True
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += perf_counter() - start
