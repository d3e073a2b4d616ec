"""The rows of the benchmark: a module a family, in each a function a kind of row and the list of its rows.

Sizes are those of the reader: T5 base (768 channels, feed-forward 2048) and large (1024 channels, feed-forward 2816),
over 10 passages of 128 tokens and 40 passages of 200. A row that carries a `Target` is one of the goals of the CPU
kernels, at one thread.
"""

from __future__ import annotations

from ..case import Case
from . import attention, bits, hamming, matmul, merging

FAMILIES: dict[str, tuple[Case, ...]] = {
    "bits": bits.CASES,
    "matmul": matmul.CASES,
    "attention": attention.CASES,
    "hamming": hamming.CASES,
    "merging": merging.CASES,
}

#: Every row, in the order of the table.
CASES: tuple[Case, ...] = tuple(case for cases in FAMILIES.values() for case in cases)

#: The operators that have rows, in the order of the table.
OPERATORS: tuple[str, ...] = tuple(dict.fromkeys(case.operator for case in CASES))

FAMILY_OF: dict[str, str] = {case.operator: family for family, cases in FAMILIES.items() for case in cases}
