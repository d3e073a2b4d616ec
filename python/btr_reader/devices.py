"""Names of devices, as users give them."""

from __future__ import annotations

import re

import torch


def parse_device(name: str) -> torch.device:
    """The device of that name: `cpu`, `cuda`, or `cuda:N`.

    Raises `ValueError` for another name, and where PyTorch does not see such a device.

    >>> parse_device("cpu")
    device(type='cpu')
    """
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: {name} was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA devices here"
        )
    return device


def runs_token_kernels(x: torch.Tensor) -> bool:
    """Whether `btr_kernels.token_linear` and `token_attention`, which have no gradient, are for tensors like x."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
