"""The memory that reading a question takes on top of weights and stores."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which memory rose at most during `run`, above where it stood before; None where that is not known.

    On a GPU: of PyTorch's allocator. On a CPU: of the process, from Linux's high-water mark.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # What the allocator keeps of earlier runs would hide what this one takes.
        ctypes.CDLL(None).malloc_trim(0)
        # 5 sets the high-water mark to the present size (proc(5)).
        _RESET.write_text("5")
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no {name}")
    return 1024 * int(found[1])
