"""Tokens by the slot they go to: what merging walks over, so that each result is written once and nothing is added
atomically (results are the same every time).

A passage has hundreds of tokens: each compares its slot with all others' of the passage, in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sort_block(slot, order, first, count, token, length, rows, base, OTHERS: tl.constexpr):
    """Sort some tokens of a passage by (slot, position); pointers are those of the passage.

    slot (length,) counts from 0, values outside of [0, rows) mean none. Token i goes to order[rank of i], and the
    first token of a slot tells where its tokens begin and how many there are: first[slot], count[slot]. `base` is
    added to tokens in `order` and to ranks in `first`.
    """
    mine = tl.load(slot + token, mask=token < length, other=-1)
    valid = (mine >= 0) & (mine < rows)
    # A thread compares its token with OTHERS others at a time, and adds up across threads only in the end.
    less = tl.zeros((OTHERS, token.shape[0]), tl.int32)
    before = tl.zeros((OTHERS, token.shape[0]), tl.int32)
    together = tl.zeros((OTHERS, token.shape[0]), tl.int32)
    for start in range(0, length, OTHERS):
        other = start + tl.arange(0, OTHERS)
        theirs = tl.load(slot + other, mask=other < length, other=-1)[:, None]
        same = theirs == mine[None, :]
        less += ((theirs >= 0) & (theirs < mine[None, :])).to(tl.int32)
        before += (same & (other[:, None] < token[None, :])).to(tl.int32)
        together += same.to(tl.int32)
    before = tl.sum(before, axis=0)
    rank = tl.sum(less, axis=0) + before
    together = tl.sum(together, axis=0)
    tl.store(order + rank, (base + token).to(tl.int32), mask=valid)
    leads = valid & (before == 0)
    tl.store(first + mine, (base + rank).to(tl.int32), mask=leads)
    tl.store(count + mine, together, mask=leads)


@triton.jit
def vote(bits, sizes, order, first, count, inside, byte, w, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """Majority of the tokens of some rows: packed bytes (ROWS, BYTES) and how many votes each row has.

    `first` and `count` (ROWS,) say which entries of `order` are a row's tokens, in order of position, `inside` which
    rows exist. A tie takes the bit of the first token.
    """
    balance = tl.zeros((ROWS, BYTES, 8), tl.int32)
    votes = tl.zeros((ROWS,), tl.int32)
    tie = tl.zeros((ROWS, BYTES), tl.int32)
    for k in range(0, tl.max(count, axis=0)):
        there = inside & (k < count)
        token = tl.load(order + first + k, mask=there, other=0).to(tl.int64)
        loaded = tl.load(bits + token[:, None] * w + byte[None, :], mask=there[:, None] & (byte < w)[None, :], other=0)
        loaded = loaded.to(tl.int32)
        size = there.to(tl.int32)
        if sizes is not None:
            size = tl.load(sizes + token, mask=there, other=0)
        ones = (loaded[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
        balance += tl.where(ones != 0, size[:, None, None], -size[:, None, None])
        votes += size
        tie = tl.where(k == 0, loaded, tie)
    tied = (tie[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    ones = ((balance > 0) | ((balance == 0) & (tied != 0))) & (votes > 0)[:, None, None]
    return tl.sum(ones.to(tl.int32) << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8), votes
