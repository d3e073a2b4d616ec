"""Where a passage's tokens lie: rows of a padded tensor (B, n, ...), or of packed tokens (total, ...) with offsets.

Values in tensors are not checked on a GPU: they are clamped, so that no kernel leaves its tensors and no two passages
share a row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def passage_range(passage, n, lengths, cu_seqlens):
    """First row and number of tokens of a passage, int64."""
    if cu_seqlens is not None:
        start = tl.load(cu_seqlens + passage).to(tl.int64)
        length = tl.load(cu_seqlens + passage + 1).to(tl.int64) - start
    else:
        start = passage.to(tl.int64) * n
        length = start * 0 + n
        if lengths is not None:
            length = tl.minimum(tl.maximum(tl.load(lengths + passage).to(tl.int64), 0), n)
    return start, length


@triton.jit
def block_of(program, batch, n_blocks, cu_seqlens, TOKENS: tl.constexpr, STEPS: tl.constexpr):
    """The passage that a program works on, and which block of TOKENS tokens of it.

    No passage has more than n_blocks blocks, which padded ones all have. A packed passage p gets those from
    cu_seqlens[p] // TOKENS + p on, at least as many as it fills before those of the next one: no prefix sum is needed,
    and at most `batch` blocks are idle. STEPS is the number of bits of `batch`.
    """
    if cu_seqlens is None:
        passage = program // n_blocks
        block = program % n_blocks
    else:
        passage = program * 0
        for i in tl.static_range(STEPS):  # binary search of the last passage that begins at or before the program
            candidate = passage + (1 << (STEPS - 1 - i))
            inside = candidate < batch
            begins = tl.load(cu_seqlens + tl.where(inside, candidate, 0)).to(tl.int64) // TOKENS + candidate
            passage = tl.where(inside & (begins <= program), candidate, passage)
        block = program - (tl.load(cu_seqlens + passage).to(tl.int64) // TOKENS + passage)
        block = tl.where(block < 0, program + n_blocks, block)  # the first passage begins later: idle
    return passage, block


def offsets(cu_seqlens: Tensor | None, total: int) -> Tensor | None:
    """Offsets as they should be: from 0 to total, never decreasing."""
    return None if cu_seqlens is None else cu_seqlens.clamp(0, total).cummax(0).values


def blocks(batch: int, n: int, total: int, packed: bool, tokens: int) -> tuple[int, int]:
    """Programs that `block_of` needs, and the most blocks that a passage has."""
    if packed:
        return triton.cdiv(total, tokens) + batch, triton.cdiv(total, tokens)
    each = triton.cdiv(n, tokens)
    return batch * each, each
