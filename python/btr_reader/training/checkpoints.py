"""Checkpoints of a training run: complete or not there, and continued only with the same settings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..jsonl import read_json_object

_STATE = "progress.json"


class Checkpoints:
    """The newest checkpoint of a run in a directory. One process writes; the others wait for it."""

    def __init__(self, directory: Path, run: dict[str, Any]):
        """run: what determines the run; a checkpoint of another is refused."""
        self.directory = directory
        # As JSON reads it back: tuples are lists there.
        self._run = json.loads(json.dumps(run))

    def load(self, accelerator: Accelerator) -> dict[str, Any] | None:
        """Restores everything that `save` was given and returns the progress, or None where there is no checkpoint.

        Raises `ValueError` naming what differs where the checkpoint is of another run.
        """
        newest = self._newest()
        if newest is None:
            return None
        record = read_json_object(newest / _STATE, "damaged checkpoint")
        found = record.get("run")
        if found != self._run:
            names = sorted(_differences(found if isinstance(found, dict) else {}, self._run))
            raise ValueError(
                f"{newest}: a checkpoint of a run with other settings ({', '.join(names)}); "
                "continue with the same ones, or train into another directory"
            )
        accelerator.load_state(str(newest))
        return record["progress"]

    def save(self, accelerator: Accelerator, step: int, progress: dict[str, Any]) -> None:
        """Writes a checkpoint beside the last one, which is then removed."""
        target = self.directory / f"step-{step:08d}"
        temporary = self.directory / f".{target.name}.tmp"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            (temporary / _STATE).write_text(json.dumps({"run": self._run, "progress": progress}, indent=2) + "\n")
            for path in temporary.rglob("*"):
                _flush(path)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            _flush(self.directory)
            for old in self._all():
                if old != target:
                    shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def remove(self) -> None:
        """Removes all checkpoints, once the run is done."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"))

    def _newest(self) -> Path | None:
        return next(iter(reversed(self._all())), None)


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> set[str]:
    names = set()
    for name in found.keys() | wanted.keys():
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names |= _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            names.add(f"{prefix}{name}")
    return names


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
