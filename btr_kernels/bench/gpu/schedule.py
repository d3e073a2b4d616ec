"""The time of `make gpu`, part by part: none can take what the later ones need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

#: Seconds of each part out of 480, in order. Guesses, since none of it has run on a GPU: what a part leaves, the later
#: ones may use.
PARTS = MappingProxyType({"build": 60.0, "checks": 110.0, "rows": 180.0, "packages": 40.0, "reader": 90.0})


class Schedule:
    """Parts that follow each other, each of which has to end by its share of the time from the start.

    Attributes:
        parts: part -> {"seconds": taken, "until": seconds after the start by which it had to end}; what ran.
    """

    def __init__(self, minutes: float, clock: Callable[[], float], shares: Mapping[str, float] = PARTS):
        self.parts: dict[str, dict[str, float]] = {}
        self._clock, self._start, self._end = clock, clock(), 0.0
        self._until, total = {}, 0.0
        for name, share in shares.items():
            total += share
            self._until[name] = total * 60 * minutes / sum(shares.values())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within the block, `left` counts down to the end of this part."""
        began, self._end = self._clock(), self._until[name]
        try:
            yield
        finally:
            self.parts[name] = {"seconds": self._clock() - began, "until": self._end}

    def left(self) -> float:
        """Seconds until the part has to end; negative when it should have."""
        return self._start + self._end - self._clock()
