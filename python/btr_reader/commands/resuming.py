"""Result files that are written line by line and continued after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def finished_lines(out: Path, resume: bool, overwrite: bool) -> list[dict[str, Any]]:
    """The lines that an interrupted run left; one that it was cut off in is dropped from the file."""
    from ..jsonl import read_jsonl

    if not out.exists() or overwrite:
        return []
    if not resume:
        raise ValueError(f"{out}: exists already; pass --resume to continue it or --overwrite")
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        out.write_bytes(whole)
    return [row for _, row in read_jsonl(out)]


def check_resumption(out: Path, done: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> None:
    """`ValueError` unless the lines done, as (id, question), are the first of those asked."""
    for number, (old, new) in enumerate(zip(done, asked, strict=False), start=1):
        if old != new:
            raise ValueError(
                f"{out}:{number}: the result is of question {old[0]!r}, expected {new[0]!r}: cannot resume"
            )
    if len(done) > len(asked):
        raise ValueError(f"{out}: has {len(done)} results for {len(asked)} questions: cannot resume")
