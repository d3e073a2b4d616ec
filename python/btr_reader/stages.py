"""Time that the stages of reading take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch

# In the order in which a reader goes through them; a form of the reader that has no such stage spends no time in it.
STAGES = ("fetch", "lower_layers", "restore", "joint_layers", "cross_projection", "decoding")


class StageClock:
    """Adds up the seconds spent in each stage; on a GPU, which runs behind the program, those between events there.

    >>> clock = StageClock()
    >>> with clock("fetch"):
    ...     pass
    >>> list(clock.seconds) == list(STAGES)
    True
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._on_gpu = device is not None and device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((stage, start, end))
            return
        begin = perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += perf_counter() - begin

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage. On a GPU this waits for what was begun."""
        while self._events:
            stage, start, end = self._events.pop()
            end.synchronize()
            self._seconds[stage] += start.elapsed_time(end) / 1e3
        return self._seconds
