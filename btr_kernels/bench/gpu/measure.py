"""Measures one row: its result is checked, then all contenders take turns."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from ... import use_backend
from .report import row_result
from .rows import Inputs, Row, Run, sets_past
from .timing import Cuda, Time, alternate

#: Seconds for one row, compilation not counted.
ROW_SECONDS = 1.5


def on_backend(name: str, run: Run) -> Run:
    def called(inputs: Inputs) -> object:
        with use_backend(name):
            return run(inputs)

    return called


def measure(row: Row, device: torch.device, limits: dict[str, float], backends: Sequence[str] = ()) -> dict[str, Any]:
    """The row's entry of the report; `backends`: those that are measured beside the one in force.

    Raises:
        AssertionError: the result is not the reference's.
    """
    properties = torch.cuda.get_device_properties(device)
    generator = torch.Generator(device).manual_seed(int.from_bytes(os.urandom(4), "little"))
    inputs = [row.make(generator, device)]
    ours = {"ours": row.ours, **{name: on_backend(name, row.ours) for name in backends}}
    for run in ours.values():
        run(inputs[0])  # chooses the configuration that is then checked
        row.verify(inputs[0], run)
    sets = sets_past(properties.L2_cache_size, row, properties.total_memory // 2)
    inputs += [row.make(generator, device) for _ in range(sets - 1)]
    contenders = {**ours, **row.peers}
    times: dict[str, Time] = alternate(contenders, inputs, Cuda(), ROW_SECONDS, time.perf_counter)
    return row_result(row, times, limits, backends)
