"""Passages of a corpus in Atlas' format, and the text that the reader sees of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .jsonl import read_jsonl, text_field


@dataclass(frozen=True)
class Passage:
    """One passage: `id` is unique in its corpus; `title` may be empty."""

    id: str
    title: str
    text: str

    @property
    def reader_text(self) -> str:
        """The passage's part of Atlas' encoder text `{query} title: {title} context: {text}`."""
        return f"title: {self.title} context: {self.text}"


def parse_passage(record: dict[str, Any], where: str) -> Passage:
    """A passage from a JSON object with `id`, `text` and optionally `title` and `section`.

    A section is appended to the title as Atlas does it: `{title}: {section}`. Raises `ValueError` naming `where`.
    """
    identifier = record.get("id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        record = {**record, "id": str(identifier)}
    title = text_field(record, "title", where, default="")
    section = text_field(record, "section", where, default="")
    if section:
        title = f"{title}: {section}"
    return Passage(text_field(record, "id", where), title, text_field(record, "text", where))


def read_passages(path: str | Path) -> Iterator[Passage]:
    """Yields the passages of a JSON-lines corpus in file order; a repeated id is a `ValueError` naming its line."""
    seen: set[str] = set()
    for where, record in read_jsonl(path):
        passage = parse_passage(record, where)
        if passage.id in seen:
            raise ValueError(f"{where}: passage id {passage.id!r} occurs twice in the corpus")
        seen.add(passage.id)
        yield passage
    if not seen:
        raise ValueError(f"{path}: the corpus has no passages")
