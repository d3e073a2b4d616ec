"""Measures one row: its result is checked, then all contenders take turns."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from .report import row_result
from .rows import Row, sets_past
from .timing import Cuda, Time, alternate

#: Seconds for one row, compilation not counted.
ROW_SECONDS = 1.5


def measure(row: Row, device: torch.device, limits: dict[str, float]) -> dict[str, Any]:
    """The row's entry of the report.

    Raises:
        AssertionError: the result is not the reference's.
    """
    properties = torch.cuda.get_device_properties(device)
    generator = torch.Generator(device).manual_seed(int.from_bytes(os.urandom(4), "little"))
    inputs = [row.make(generator, device)]
    row.ours(inputs[0])  # chooses the configuration that is then checked
    row.verify(inputs[0])
    sets = sets_past(properties.L2_cache_size, row, properties.total_memory // 2)
    inputs += [row.make(generator, device) for _ in range(sets - 1)]
    contenders = {"ours": row.ours, **row.peers}
    times: dict[str, Time] = alternate(contenders, inputs, Cuda(), ROW_SECONDS, time.perf_counter)
    return row_result(row, times, limits)
