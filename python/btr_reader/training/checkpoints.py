"""Checkpoints of a training run: complete or not there, and continued only with the same settings."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..files import publish_directory, write_durably
from ..jsonl import read_json_object
from .settings import RunSettings

_STATE, _FINISHED = "progress.json", "finished.json"
# It warns that the embedding, which encoder and decoder share, is saved once.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


class Checkpoints:
    """What is kept of a run in its output directory: the newest checkpoint, and at the end how it came out.

    One process writes; the others of the run wait for it.
    """

    def __init__(self, out: Path, run: dict[str, Any], settings: RunSettings):
        """run: what determines the run besides its settings; a checkpoint of another is refused."""
        self._out = out
        self.directory = out / "checkpoints"
        self._settings = settings
        self._run = {**run, "settings": settings.to_dict()}

    def belong_to(self, **data: str) -> None:
        """More that determines the run: what it is trained and scored on."""
        self._run |= data

    def finished(self) -> dict[str, Any] | None:
        """The outcome of this run where it came to its end before. `ValueError` where another one did."""
        path = self._out / _FINISHED
        if not path.exists():
            return None
        record = read_json_object(path, "damaged record of a run")
        self._check(path, record)
        return record["progress"]["best"]

    def load(self, accelerator: Accelerator) -> dict[str, Any] | None:
        """Restores everything that `save` was given and returns the progress, or None where there is no checkpoint.

        Raises `ValueError` naming what differs where the checkpoint is of another run, or it where it is damaged.
        """
        newest = self._newest()
        if newest is None:
            return None
        record = read_json_object(newest / _STATE, "damaged checkpoint")
        self._check(newest, record)
        try:
            accelerator.load_state(str(newest))
        except Exception as error:  # of safetensors, of pickles, of missing or cut files: all mean the same here
            raise ValueError(
                f"{newest}: damaged checkpoint ({type(error).__name__}: {error}); remove it to start again"
            ) from error
        return record["progress"]

    def _check(self, path: Path, record: dict[str, Any]) -> None:
        found = record.get("run")
        if isinstance(found, dict) and isinstance(found.get("settings"), dict):
            found = {**found, "settings": self._settings.completed(found["settings"])}
        if found != self._run:
            names = sorted(_differences(found if isinstance(found, dict) else {}, self._run))
            raise ValueError(
                f"{path}: of another run, which differs in {', '.join(names)}; "
                "continue with the same, or train into another directory"
            )

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
            publish_directory(temporary, target)
            for old in self._all():
                if old != target:
                    shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def finish(self, progress: dict[str, Any]) -> None:
        """Records how the run came out, and removes its checkpoints."""
        record = {"run": self._run, "progress": progress}
        write_durably(self._out / _FINISHED, (json.dumps(record, indent=2) + "\n").encode())
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
