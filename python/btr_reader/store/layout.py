"""Which tensors a shard holds, and what each is for: the one definition that writing, reading and accounting share.

Tensors of a shard with p passages, n original and m kept tokens:

    states         the kept tokens of all passages in a row: uint8 (m, w) bits, or float (m, d); or instead, with
    codes          masked bits: uint8 (m, ceil(K / 8)), the stored bits of each in the order of their channels, or, with
    indexes        a codebook: uint8 or uint16 (m,), the number of each one's vector among those of its id
    lengths        uint16 (p,): original tokens of each passage
    kept_lengths   uint16 (p,): kept tokens of each passage; only where tokens are merged
    slots          uint8 (n,), uint16 where passages may be longer than 256: the row, counted from the passage's first,
                   that each original token went to; only where tokens are merged. Sizes and positions follow from it
    token_ids      uint16 (n,), int32 for more than 65,536 ids: the token ids that were read, before merging; only
                   where the store keeps them
    kept_ids       the same (m,), of the earliest original token of each kept one; only with masked bits or a codebook,
                   where token_ids are not there to take them from
    id_bytes       uint8: the passage ids in UTF-8, one after the other
    id_lengths     uint16 (p,): bytes of each

Offsets are not stored: they are the running sums of the lengths, taken when a shard is opened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .manifest import Shard, StoreSettings

_FLOATS = {"float32": np.float32, "float16": np.float16}
_INDEXES = {1: np.uint8, 2: np.uint16}


@dataclass(frozen=True)
class TensorLayout:
    """dtype and shape of one tensor of a shard, and the component of the store's size that it counts to."""

    dtype: np.dtype
    shape: tuple[int, ...]
    component: str

    @property
    def bytes(self) -> int:
        size = np.dtype(self.dtype).itemsize
        for extent in self.shape:
            size *= extent
        return size


def shard_layout(settings: StoreSettings, shard: Shard, index_bytes: int | None = None) -> dict[str, TensorLayout]:
    """The tensors of a shard by name. index_bytes: of a store with a codebook."""
    rows, states = rows_tensor(settings, shard, index_bytes)
    layout = {
        rows: states,
        "lengths": TensorLayout(np.uint16, (shard.passages,), "offsets"),
        "id_bytes": TensorLayout(np.uint8, (shard.id_bytes,), "passage ids"),
        "id_lengths": TensorLayout(np.uint16, (shard.passages,), "passage ids"),
    }
    if settings.original_ids:
        layout["token_ids"] = TensorLayout(_id_dtype(settings), (shard.original_tokens,), "token ids")
    elif settings.needs_ids:
        layout["kept_ids"] = TensorLayout(_id_dtype(settings), (shard.tokens,), "token ids")
    if settings.keep < 1:
        slot = np.uint8 if settings.passage_length <= 256 else np.uint16
        layout["slots"] = TensorLayout(slot, (shard.original_tokens,), "slots")
        layout["kept_lengths"] = TensorLayout(np.uint16, (shard.passages,), "offsets")
    return layout


def _id_dtype(settings: StoreSettings) -> np.dtype:
    return np.uint16 if settings.vocabulary <= 2**16 else np.int32


def rows_tensor(settings: StoreSettings, shard: Shard, index_bytes: int | None) -> tuple[str, TensorLayout]:
    """Name and layout of the tensor that has a row for every kept token."""
    if settings.kind != "binary":
        return "states", TensorLayout(_FLOATS[settings.kind], (shard.tokens, settings.channels), "states")
    if settings.masked_bits:
        return "codes", TensorLayout(np.uint8, (shard.tokens, -(-settings.masked_bits // 8)), "states")
    if settings.codebook_bytes:
        return "indexes", TensorLayout(_INDEXES[index_bytes], (shard.tokens,), "index")
    return "states", TensorLayout(np.uint8, (shard.tokens, -(-settings.channels // 8)), "states")
