"""Dataclasses from JSON objects that may come from elsewhere: exactly their fields, of exactly their types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

_TYPES = {"int": int, "str": str, "bool": bool, "float": (int, float)}
_T = TypeVar("_T")


def from_record(record: Any, cls: type[_T], others: Mapping[str, type] | None = None) -> _T:
    """A dataclass from a JSON object with exactly its fields. Numbers are neither negative nor 2^63 or more.

    others: classes of fields that hold neither numbers, truth values nor strings, by their annotation; an annotation
    that is not known is one of certain strings. Raises `TypeError` saying what is wrong.
    """
    names = [entry.name for entry in fields(cls)]
    if not isinstance(record, dict) or set(record) != set(names):
        raise TypeError(f"a {cls.__name__} must have {', '.join(names)}, got {record!r}")
    types = {**_TYPES, **(others or {})}
    for entry in fields(cls):
        value, kind = record[entry.name], types.get(entry.type, str)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong or (isinstance(value, (int, float)) and not 0 <= value < 2**63):
            raise TypeError(f"{entry.name} of a {cls.__name__} is {value!r}")
    return cls(**record)


def typed(record: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """The field of that name; `TypeError` unless it is there and of that type."""
    value = record.get(name)
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
    return value
