"""Reading and writing of JSON-lines files, with errors that name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `(where, record)` for every non-blank line of a JSON-lines file.

    `where` is `"FILE:LINE"` and is meant for error messages. A line that is not a JSON object in UTF-8 is a
    `ValueError` that names the file and the line; a missing file is a `FileNotFoundError`.

    >>> for where, record in read_jsonl("passages.jsonl"):  # doctest: +SKIP
    ...     print(where, record["id"])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                # Some programs begin a file with a byte order mark.
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\u" in line:  # an escape may name half of a surrogate pair, which is no text
                    json.dumps(record, ensure_ascii=False).encode("utf-8")
            except UnicodeError as error:
                raise ValueError(f"{where}: not UTF-8 text: {error}") from None
            except (ValueError, RecursionError) as error:  # also numbers and nesting beyond Python's limits
                raise ValueError(f"{where}: not valid JSON: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
            yield where, record


def read_json_object(path: Path, damaged: str) -> dict[str, Any]:
    """The one JSON object of a file; anything else is a `ValueError` that names the file and says `damaged`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or beyond Python's limits
        raise ValueError(f"{path}: {damaged}: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}: {damaged}: expected an object, got {type(record).__name__}")
    return record


def write_jsonl(path: str | Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes one JSON object a line (UTF-8, not escaped) and returns how many were written."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def text_field(record: dict[str, Any], name: str, where: str, *, default: str | None = None) -> str:
    """The string `record[name]`; without a default, a missing or empty one is a `ValueError` naming the line."""
    value = record.get(name, default)
    if value is None:
        raise ValueError(f"{where}: field {name!r} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {name!r} must be a string, got {type(value).__name__}")
    if default is None and not value.strip():
        raise ValueError(f"{where}: field {name!r} is empty")
    return value
