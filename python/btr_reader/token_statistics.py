"""How often each bit is set among the tokens of each vocabulary id: what masked bits are chosen by.

The statistics belong to the reader, as its residual scale does. They are measured once on a sample of text and kept in
the reader directory; a store made with masked bits has a copy of the tables that were derived from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialise
from torch import Tensor

import btr_kernels

from .encoding import calibrate_residual_scale
from .files import write_durably
from .model import load_tensors
from .passages import Passage
from .reader import Reader
from .settings import ReaderSettings
from .store import TokenTables

STATISTICS_FILE = "token_statistics.safetensors"
# Tokens' worth of the average over all ids that every id starts with: what rare and unseen ids fall back to.
PRIOR_TOKENS = 2.0


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """Of V vocabulary ids: tokens int64 `(V,)`, how many were seen, and ones int32 `(V, d)`, how many set each bit."""

    tokens: Tensor
    ones: Tensor

    @classmethod
    def empty(cls, vocabulary: int, channels: int) -> TokenStatistics:
        return cls(torch.zeros(vocabulary, dtype=torch.int64), torch.zeros(vocabulary, channels, dtype=torch.int32))

    def add(self, bits: Tensor, ids: Tensor) -> None:
        """Counts tokens in: bits uint8 `(n, w)`, ids int64 `(n,)`."""
        set_bits = btr_kernels.unpack_bits(bits, self.ones.shape[1]) > 0
        self.ones.index_add_(0, ids, set_bits.int())
        self.tokens.index_add_(0, ids, torch.ones_like(ids))

    def tables(self, stored_bits: int) -> TokenTables:
        """The tables that keep the `stored_bits` least certain bits of every id; of equals the first channels."""
        channels = self.ones.shape[1]
        if not 1 <= stored_bits <= channels:
            raise ValueError(f"stored_bits must be in 1..{channels}, got {stored_bits}")
        total = int(self.tokens.sum())
        if not total:
            raise ValueError("the statistics are of no tokens")
        overall = self.ones.sum(0).double() / total
        mask, majority = [], []
        # In parts: of 32,000 ids and 768 channels the float64 shares alone take 200 MB.
        for tokens, ones in zip(self.tokens.split(1024), self.ones.split(1024), strict=True):
            share = (ones + PRIOR_TOKENS * overall) / (tokens[:, None] + PRIOR_TOKENS)
            least_certain = (share - 0.5).abs().argsort(dim=1, stable=True)[:, :stored_bits]
            chosen = torch.zeros(share.shape, dtype=torch.bool).scatter_(1, least_certain, True)
            mask.append(btr_kernels.pack_bits(chosen).numpy())
            majority.append(btr_kernels.pack_bits(share >= 0.5).numpy())
        return TokenTables(np.concatenate(mask), np.concatenate(majority), stored_bits)

    def save(self, directory: str | Path, settings: ReaderSettings) -> None:
        """Writes the ids that were seen into the reader directory, with the cut that they were measured at."""
        seen = self.tokens.nonzero().flatten()
        tensors = {"ids": seen.int(), "tokens": self.tokens[seen], "ones": self.ones[seen]}
        write_durably(Path(directory) / STATISTICS_FILE, serialise(tensors, metadata=_metadata(settings)))


def load_token_statistics(directory: str | Path, reader: Reader) -> TokenStatistics | None:
    """The statistics in a reader directory, None where there are none; `ValueError` naming a file that does not fit."""
    path = Path(directory) / STATISTICS_FILE
    if not path.is_file():
        return None
    tensors = load_tensors(path)
    with safe_open(path, "pt") as file:
        measured_at = file.metadata() or {}
    if measured_at != _metadata(reader.settings):
        raise ValueError(
            f"{path}: measured at {measured_at}, but the reader is cut at {_metadata(reader.settings)}: "
            "run btr calibrate again"
        )
    statistics = TokenStatistics.empty(reader.tokenizer.vocabulary_size, reader.channels)
    count = len(tensors["ids"]) if "ids" in tensors else 0
    expected = {
        "ids": (torch.int32, (count,)),
        "tokens": (torch.int64, (count,)),
        "ones": (torch.int32, (count, reader.channels)),
    }
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != expected:
        raise ValueError(f"{path}: expected the tensors {expected}, got {found}")
    ids, tokens, ones = tensors["ids"].long(), tensors["tokens"], tensors["ones"]
    in_order = bool((ids.diff() > 0).all()) and (not count or (ids[0] >= 0 and ids[-1] < len(statistics.tokens)))
    if not in_order or bool((ones < 0).any()) or bool((ones > tokens[:, None]).any()):
        raise ValueError(f"{path}: damaged statistics: ids must rise below the vocabulary's size, ones be in 0..tokens")
    statistics.tokens[ids], statistics.ones[ids] = tokens, ones
    return statistics


def _metadata(settings: ReaderSettings) -> dict[str, str]:
    return {name: str(value) for name, value in settings.to_dict().items()}


@torch.no_grad()
def calibrate(reader: Reader, passages: Iterable[Passage], passage_length: int = 200) -> tuple[Tensor, TokenStatistics]:
    """Measures both that a reader needs for its bits: rho, float32 `(d,)` (`calibrate_residual_scale`), and statistics.

    Raises `ValueError` where there are no passages.
    """
    statistics = TokenStatistics.empty(reader.tokenizer.vocabulary_size, reader.channels)

    def observe(ids: list[list[int]], states: Tensor) -> None:
        statistics.add(btr_kernels.pack_bits(states).cpu(), torch.tensor(list(itertools.chain.from_iterable(ids))))

    return calibrate_residual_scale(reader, passages, passage_length, observe).cpu(), statistics
