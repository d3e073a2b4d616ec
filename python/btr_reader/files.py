"""Files of stores, indexes and runs: nothing reported written is lost, nothing is believed unchecked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .digests import file_digest

LOCK_FILE = ".lock"


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Makes a directory and keeps other processes from writing it. what: what it holds, for errors.

    Raises `ValueError` where there is a file in its place, or another process that writes it.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: is a file; the {what} must be a directory")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{directory}: another process is writing this {what}") from None
        yield


@dataclass(frozen=True)
class StoredFile:
    """A file that the manifest names: its size in bytes and its SHA-256."""

    file: str
    bytes: int
    sha256: str

    def check_size(self, directory: Path) -> Path:
        """The file's path; `ValueError` unless it is there with this size."""
        path = directory / self.file
        if not path.is_file():
            raise ValueError(f"{path}: the file is missing")
        size = path.stat().st_size
        if size != self.bytes:
            raise ValueError(f"{path}: damaged file: {size} bytes, expected {self.bytes}")
        return path

    def verify(self, directory: Path) -> None:
        """`ValueError` unless the file is there with this size and SHA-256."""
        path = self.check_size(directory)
        if file_digest(path) != self.sha256:
            raise ValueError(f"{path}: damaged file: its SHA-256 is not the one in the manifest")


def write_file(directory: Path, name: str, content: bytes) -> StoredFile:
    """Writes a file with `write_durably` and returns its entry for the manifest."""
    write_durably(directory / name, content)
    return StoredFile(name, len(content), hashlib.sha256(content).hexdigest())


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as arrays over the mapped file; a damaged one is a `ValueError` naming it."""
    try:
        # Through torch: its tensors are views of one mapping, those that safetensors gives NumPy are copies.
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise ValueError(f"{path}: damaged file: {error}") from None


def check_tensor(
    path: Path, tensors: dict[str, np.ndarray], name: str, dtype: np.dtype, shape: tuple[int, ...]
) -> None:
    """`ValueError` naming file and tensor unless it is there with this dtype and shape."""
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
        got = "none" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise ValueError(f"{path}: damaged file: tensor {name} must be {np.dtype(dtype)} {shape}, got {got}")


def publish_directory(temporary: Path, target: Path) -> None:
    """Gives a directory that is completely written its name, in place of the one that has it."""
    for path in (*temporary.rglob("*"), temporary):
        _flush(path)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file so that a kill or a full disk leaves either nothing or all of it under its name.

    Raises `OSError` naming the file; what was there before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; what was complete is still there") from None
