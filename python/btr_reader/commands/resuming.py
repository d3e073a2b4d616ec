"""Result files that are written line by line and continued after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


@contextmanager
def results_file(out: Path, done: Sequence[Any], options: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Opens the file behind the lines done, or a new one with its options beside it, and gives what writes a line.

    What is overwritten is lost only here: what can be seen to be wrong with a command is to be seen before.
    """
    if not done:
        out.unlink(missing_ok=True)
        write_durably(_beside(out), (json.dumps(_as_read_back(options), indent=2) + "\n").encode())
    with out.open("a", encoding="utf-8") as file:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()

        yield write


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
