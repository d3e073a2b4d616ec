"""CUDA graphs of decoding steps, kept for the sizes that come up again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

# Memory tokens of a graph are a multiple of this: a few padded tokens cost nothing beside another capture.
MEMORY_STEP = 64
# Graphs kept: each holds the keys and values of a memory.
GRAPHS = 8


class Steps(Protocol):
    """A run of decoding steps on fixed tensors."""

    def restart(self) -> None: ...

    def next_logits(self, token: Tensor) -> Tensor: ...


Capture = Callable[[Steps, Tensor], tuple[Callable[[], object], Tensor]]


def capture(steps: Steps, token: Tensor) -> tuple[Callable[[], object], Tensor]:
    """A CUDA graph of one step: what replays it on the content of `token`, and the logits that it then writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # Libraries choose and allocate on the first calls.
        for _ in range(2):
            steps.restart()
            steps.next_logits(token)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = steps.next_logits(token)
    return graph.replay, logits


class GraphedSteps:
    """Makes runs like `make_steps(decoder, cross, length)` does, whose steps replay a captured one.

    An eager step of a T5 decoder is 560 (base) to 1,088 (large) launches, which take longer than what they launch.
    """

    def __init__(self, make_steps: Callable[[Any, Any, int], Steps], capture: Capture = capture):
        self._make_steps = make_steps
        self._capture = capture
        self._runs: OrderedDict[tuple, _GraphedRun] = OrderedDict()

    def __call__(self, decoder: Any, cross: Any, length: int) -> Steps:
        """A run on the content of `cross`; it ends the run before it of the same sizes."""
        batch, tokens = cross.bias.shape[0], cross.bias.shape[-1]
        width = -(-tokens // MEMORY_STEP) * MEMORY_STEP
        key = (batch, width, length, cross.bias.device, cross.bias.dtype)
        run = self._runs.pop(key, None)
        if run is None:
            run = _GraphedRun(self._make_steps, self._capture, decoder, cross, width, length)
        self._runs[key] = run
        while len(self._runs) > GRAPHS:
            self._runs.popitem(last=False)
        run.start(cross)
        return run


class _GraphedRun:
    def __init__(self, make_steps, capture: Capture, decoder: Any, cross: Any, width: int, length: int):
        def fixed(tensors: list[Tensor]) -> list[Tensor]:
            return [t.new_zeros((t.shape[0], width, t.shape[2])) for t in tensors]

        bias = cross.bias.new_full((*cross.bias.shape[:3], width), -torch.inf)
        self._cross = type(cross)(fixed(cross.keys), fixed(cross.values), bias)
        self._token = torch.zeros(bias.shape[0], dtype=torch.int64, device=bias.device)
        self._steps: Steps = make_steps(decoder, self._cross, length)
        self._copy(cross)
        self._replay, self._logits = capture(self._steps, self._token)

    def start(self, cross: Any) -> None:
        self._copy(cross)
        self._steps.restart()

    def next_logits(self, token: Tensor) -> Tensor:
        self._token.copy_(token)
        self._replay()
        return self._logits

    def _copy(self, cross: Any) -> None:
        for fixed, given in zip((*self._cross.keys, *self._cross.values), (*cross.keys, *cross.values), strict=True):
            fixed[:, : given.shape[1]] = given
        # Keys behind the memory may be left from a longer one; their bias alone decides.
        self._cross.bias.fill_(-torch.inf)
        self._cross.bias[..., : cross.bias.shape[-1]] = cross.bias
