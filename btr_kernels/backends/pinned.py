"""Bits in host memory that a GPU kernel reads by itself."""

from __future__ import annotations

from collections import deque
from threading import Lock

import torch
from torch import Tensor

#: What kernels may still be reading, each with an event behind its kernel.
_in_use: deque[tuple[torch.cuda.Event, Tensor]] = deque()
_lock = Lock()


def readable(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor's elements one after the other in memory that kernels on `device` can read: itself where that is so,
    else a copy."""
    # A contiguous copy of pinned memory would not be pinned: it goes to the device instead.
    if device.type == "cuda" and tensor.is_contiguous() and tensor.is_pinned():
        return tensor
    return tensor.to(device).contiguous()


def hold(tensor: Tensor, device: torch.device) -> None:
    """Keep host memory until the kernels launched so far on the device's current stream are done: PyTorch gives pinned
    memory to others as soon as nobody holds it, and knows nothing of kernels that read it. During graph capture the
    caller has to keep it for as long as the graph."""
    if tensor.is_cuda or device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    with _lock:
        _in_use.append((event, tensor))
        while _in_use and _in_use[0][0].query():
            _in_use.popleft()
