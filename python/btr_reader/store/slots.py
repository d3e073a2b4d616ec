"""What follows from the slots of merged tokens, for many passages at once."""

from __future__ import annotations

import numpy as np


def kept_rows(slots: np.ndarray, lengths: np.ndarray, kept: np.ndarray, where: str) -> np.ndarray:
    """The row, among the kept tokens of all passages, that each original token went to: int64 `(n,)`.

    slots: int `(n,)`, counted within each passage. lengths, kept: int `(p,)`, original and kept tokens of each.
    Raises `ValueError` naming `where` for a slot that its passage does not have.
    """
    kept_of_token = np.repeat(kept, lengths)
    slots = slots.astype(np.int64)
    if (slots < 0).any() or (slots >= kept_of_token).any():
        raise ValueError(f"{where}: damaged file: a slot is not below the number of its passage's kept tokens")
    return slots + np.repeat(np.cumsum(kept) - kept, lengths)


def first_tokens(
    slots: np.ndarray, lengths: np.ndarray, kept: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every kept token: the row of its earliest original token among those of all passages, int64 `(m,)`; where in
    its passage that stood, int64 `(m,)`; and how many tokens it stands for, int64 `(m,)`.

    A merged token keeps its earliest token's place and vocabulary id, as a majority tie keeps its bit. Raises
    `ValueError` naming `where` for slots out of range and for kept tokens that no token went to.
    """
    rows = kept_rows(slots, lengths, kept, where)
    total = int(kept.sum())
    sizes = np.bincount(rows, minlength=total)
    if total and not sizes.min():
        raise ValueError(f"{where}: damaged file: it has states that no token went to")
    first = np.empty(total, dtype=np.int64)
    # Of several assignments to one element NumPy keeps the last: here the earliest token's.
    first[rows[::-1]] = np.arange(len(rows) - 1, -1, -1)
    positions = first - np.repeat(np.cumsum(lengths) - lengths, kept)
    return first, positions, sizes
