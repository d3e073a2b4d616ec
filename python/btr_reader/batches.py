"""Padded batches of queries and of their passages, as the reader runs over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .tokenizer import PAD


@dataclass(frozen=True, eq=False)
class QueryBatch:
    """Queries padded on the *left*, so that a query's last token stands next to its passage's first.

    With the passage padded on the right, the tokens of [query; passage] are then consecutive in the batch, and their
    relative positions are the differences of their column numbers for every row.

    ids: int64 `(B, Lq)`. sizes: int32 `(B, Lq)`, 1 for a token and 0 for padding.
    """

    ids: Tensor
    sizes: Tensor

    def to(self, device: torch.device | str) -> QueryBatch:
        return QueryBatch(self.ids.to(device), self.sizes.to(device))


@dataclass(frozen=True, eq=False)
class PassageBatch:
    """The P passages of each of B queries, padded on the right; a query with fewer passages has rows without tokens.

    content: int64 token ids `(B, P, T)`, float states `(B, P, T, d)` or packed bits uint8 `(B, P, T, w)`.
    sizes: int32 `(B, P, T)`: how many tokens of the text each token stands for, 0 for padding.
    positions: int32 `(B, P, T)`: where in its passage each token stood, None for 0, 1, ..., T - 1.
    span: all positions are below it; found out where it is not given, which makes a GPU wait.
    ids: int64 `(B, P, T)`: the vocabulary id of each token, of merged ones the earliest's, where bits are
    restored by it.
    """

    content: Tensor
    sizes: Tensor
    positions: Tensor | None = None
    span: int = 0
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        if self.content.ndim not in (3, 4) or self.content.shape[:3] != self.sizes.shape:
            raise ValueError(
                "content must be (B, P, T) or (B, P, T, channels) with sizes (B, P, T), "
                f"got {tuple(self.content.shape)} with {tuple(self.sizes.shape)}"
            )
        if self.positions is not None and self.positions.shape != self.sizes.shape:
            raise ValueError(f"positions must be {tuple(self.sizes.shape)}, got {tuple(self.positions.shape)}")
        if self.ids is not None and self.ids.shape != self.sizes.shape:
            raise ValueError(f"ids must be {tuple(self.sizes.shape)}, got {tuple(self.ids.shape)}")
        if not self.span:
            span = self.sizes.shape[-1] if self.positions is None else int(self.positions.max()) + 1
            object.__setattr__(self, "span", span)

    def to(self, device: torch.device | str) -> PassageBatch:
        """The batch on a device, copied without waiting from memory that is pinned for a GPU. Packed bits stay there:
        the kernel that restores them fetches them itself (`BinaryCode.restore`)."""
        if self.sizes.device == torch.device(device):
            return self
        on_gpu = torch.device(device).type == "cuda"

        def moved(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return (tensor.pin_memory() if on_gpu else tensor).to(device, non_blocking=on_gpu)

        bits = on_gpu and self.content.dtype == torch.uint8
        content = self.content.pin_memory() if bits else moved(self.content)
        return PassageBatch(content, moved(self.sizes), moved(self.positions), self.span, moved(self.ids))


def pad_queries(queries: Sequence[Sequence[int]]) -> QueryBatch:
    """Token ids of B queries -> a batch padded on the left. Every query needs at least one token.

    >>> pad_queries([[7], [8, 9]]).ids.tolist()
    [[0, 7], [8, 9]]
    """
    if not queries or any(len(ids) == 0 for ids in queries):
        raise ValueError("queries must hold at least one query, and every query at least one token")
    width = max(map(len, queries))
    ids = torch.full((len(queries), width), PAD, dtype=torch.int64)
    sizes = torch.zeros((len(queries), width), dtype=torch.int32)
    for row, tokens in enumerate(queries):
        ids[row, width - len(tokens) :] = torch.as_tensor(tokens)
        sizes[row, width - len(tokens) :] = 1
    return QueryBatch(ids, sizes)


def pad_passages(passages: Sequence[Sequence[Sequence[int]]]) -> PassageBatch:
    """Token ids of the passages of each query, `passages[query][passage]` -> a batch of ids padded on the right.

    >>> pad_passages([[[5, 1], [6, 7, 1]]]).ids.shape  # doctest: +SKIP
    torch.Size([1, 2, 3])
    """
    if not passages or any(len(row) == 0 for row in passages):
        raise ValueError("passages must hold at least one passage for every query")
    count = max(map(len, passages))
    width = max(len(ids) for row in passages for ids in row)
    if width == 0:
        raise ValueError("passages must hold at least one token")
    ids = torch.full((len(passages), count, width), PAD, dtype=torch.int64)
    sizes = torch.zeros((len(passages), count, width), dtype=torch.int32)
    for query, row in enumerate(passages):
        for number, tokens in enumerate(row):
            ids[query, number, : len(tokens)] = torch.as_tensor(tokens)
            sizes[query, number, : len(tokens)] = 1
    return PassageBatch(ids, sizes)
