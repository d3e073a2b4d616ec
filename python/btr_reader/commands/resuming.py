"""Result files that are written line by line and continued after an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..files import write_durably


def finished_lines(out: Path, resume: bool, overwrite: bool, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that an interrupted run left; one that it was cut off in is dropped from the file.

    options: what determines the lines besides the questions. They are kept beside the file, in `OUT.options.json`: a
    run with others is not continued, which would mix their results. Raises `ValueError` naming those that differ, and
    `FileNotFoundError` if the file's directory does not exist.
    """
    from ..jsonl import read_json_object, read_jsonl

    beside, options = _beside(out), _as_read_back(options)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: its directory does not exist")
    # A run that failed before its first result leaves nothing to continue.
    if not out.exists() or overwrite or out.stat().st_size == 0:
        return []
    if not resume:
        raise ValueError(f"{out}: exists already; pass --resume to continue it or --overwrite")
    if not beside.exists():
        raise ValueError(f"{out}: cannot resume: {beside.name}, the options that it was begun with, is missing")
    begun = read_json_object(beside, "damaged record of options")
    different = sorted(name for name in begun.keys() | options.keys() if begun.get(name) != options.get(name))
    if different:
        listed = "; ".join(f"{name} was {begun.get(name)!r}, is {options.get(name)!r}" for name in different)
        raise ValueError(f"{out}: cannot resume with other options: {listed}")
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        out.write_bytes(whole)
    return [row for _, row in read_jsonl(out)]


class ResultsFile:
    """Writes lines behind those done, or into a new file with its options beside it.

    What is overwritten is lost with the first line, when it is there: a mistyped command loses nothing.

    >>> with ResultsFile(Path("answers.jsonl"), [], {"task": "nq"}) as results:  # doctest: +SKIP
    ...     results.write({"id": "q1", "generation": "hamlet"})
    """

    def __init__(self, out: Path, done: Sequence[Any], options: dict[str, Any]):
        self._out, self._begins, self._options = out, not done, options
        self._file: TextIO | None = None

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None and kind is None:
            self._open()  # there was nothing to write, which is a result as well
        if self._file is not None:
            self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """One line, which is on its way to the disk when this returns."""
        file = self._file or self._open()
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()

    def _open(self) -> TextIO:
        if self._begins:
            # In this order a kill in between leaves nothing that could be continued with other options.
            self._out.unlink(missing_ok=True)
            content = json.dumps(_as_read_back(self._options), indent=2) + "\n"
            write_durably(_beside(self._out), content.encode())
        self._file = self._out.open("a", encoding="utf-8")
        return self._file


def check_not_read(out: Path, **inputs: Path | None) -> None:
    """`ValueError` where the file to write is one of those to read."""
    for name, path in inputs.items():
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"out: {out} is what {name} are read from")


def _beside(out: Path) -> Path:
    return out.with_name(out.name + ".options.json")


def _as_read_back(options: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(options, default=str))


def check_resumption(out: Path, done: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> None:
    """`ValueError` unless the lines done, as (id, question), are the first of those asked."""
    for number, (old, new) in enumerate(zip(done, asked, strict=False), start=1):
        if old != new:
            raise ValueError(
                f"{out}:{number}: the result is of question {old[0]!r}, expected {new[0]!r}: cannot resume"
            )
    if len(done) > len(asked):
        raise ValueError(f"{out}: has {len(done)} results for {len(asked)} questions: cannot resume")
