"""Times on a GPU: contenders take turns, each a replay of a graph that walks over inputs larger than the L2 cache.

A graph leaves out what Python and the launches cost, for every contender alike; one that cannot be captured is timed
as it runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")

#: A sample replays until it lasts this long.
SAMPLE_SECONDS = 2e-3
MIN_ROUNDS, MAX_ROUNDS = 5, 50


class Device(Protocol):
    """What the loop needs of a GPU; tests bring their own."""

    def prepared(self, run: Callable[[], object]) -> tuple[Callable[[], object], bool]:
        """`run` made ready to be repeated, and whether it became a graph."""

    def seconds(self, run: Callable[[], object], times: int) -> float: ...


class Cuda:
    """Graphs and events of the current device."""

    def prepared(self, run: Callable[[], object]) -> tuple[Callable[[], object], bool]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles and chooses configurations
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError:
            torch.cuda.synchronize()
            return run, False
        return graph.replay, True

    def seconds(self, run: Callable[[], object], times: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


@dataclass
class Time:
    """Seconds a call: median and interquartile range in percent of it; or why there is none."""

    seconds: float | None = None
    spread: float = 0.0
    graph: bool = True
    error: str | None = None


def alternate(
    contenders: Mapping[str, Callable[[T], object]],
    inputs: Sequence[T],
    device: Device,
    seconds: float,
    clock: Callable[[], float],
) -> dict[str, Time]:
    """Time all contenders over all inputs in rounds until `seconds` have passed; one that fails leaves its error."""
    start = clock()
    times, ready = {}, {}
    for name, run in contenders.items():

        def over_all(run: Callable[[T], object] = run) -> None:
            for i in inputs:
                run(i)

        try:
            replay, graph = device.prepared(over_all)
            once = device.seconds(replay, 1)
            once = min(once, device.seconds(replay, 1))
        except Exception as error:  # whatever a peer raises, the others go on
            times[name] = Time(error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        times[name] = Time(graph=graph)
        ready[name] = (replay, max(1, round(SAMPLE_SECONDS / max(once, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in ready}
    order = list(ready)
    for done in range(MAX_ROUNDS if order else 0):
        if done >= MIN_ROUNDS and clock() - start >= seconds:
            break
        for name in order:
            replay, times_each = ready[name]
            samples[name].append(device.seconds(replay, times_each) / times_each / len(inputs))
        order.append(order.pop(0))
    for name, found in samples.items():
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        times[name].seconds, times[name].spread = middle, 100 * (high - low) / middle if middle else 0.0
    return times


def limits(device: torch.device, gib: int = 1, n: int = 8192) -> dict[str, float]:
    """What the GPU can do, measured by what PyTorch runs best: bytes a second read + written, operations a second."""
    found = {}
    words = gib << 28
    x, y = (torch.empty(words, dtype=torch.float32, device=device).normal_() for _ in range(2))
    found["copy"] = 8 * words / _best(partial(y.copy_, x))
    for dtype, size in ((torch.bfloat16, n), (torch.float32, n // 2)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        found[str(dtype)[6:]] = 2 * size**3 / _best(partial(torch.matmul, a, b, out=out))
    one = torch.ones((), device=device)
    a, b = torch.randint(-128, 128, (2, n, n), dtype=torch.int8, device=device)
    found["int8"] = 2 * n**3 / _best(partial(torch._int_mm, a, b.t()))
    if torch.cuda.get_device_capability(device) >= (8, 9):
        a, b = torch.randn(2, n, n, device=device).to(torch.float8_e4m3fn)
        scaled = partial(torch._scaled_mm, a, b.t(), one, one, out_dtype=torch.bfloat16)
        found["float8_e4m3fn"] = 2 * n**3 / _best(scaled)
    return found


def _best(run: Callable[[], object], tries: int = 10) -> float:
    device = Cuda()
    run()
    return min(device.seconds(run, 1) for _ in range(tries))
