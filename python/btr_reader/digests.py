"""Fingerprints of files and tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def add_tensors(digest: Any, named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Updates a digest of hashlib with tensors: their names, dtypes, shapes and values."""
    for name, tensor in named:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file; a missing one is a `FileNotFoundError` naming it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
