"""What an extractive reader's bits are restored with, measured on text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

import btr_kernels

from ..encoding import calibrate_residual_scale
from ..passages import Passage
from ..store import TokenTables
from ..token_statistics import PRIOR_TOKENS, TokenStatistics
from .code import SignCode
from .encoder import BertFusionEncoder
from .reader import ExtractiveReader


@torch.no_grad()
def calibrated(
    reader: ExtractiveReader,
    passages: Sequence[Passage],
    passage_length: int,
    *,
    calibrate: bool = True,
    masked_bits: int = 0,
    centroids: bool = False,
) -> ExtractiveReader:
    """The reader with a new code (`SignCode`) whose constants and first parameters are measured on passages.

    A state's scale is the weight of its norm times the mean magnitude of the channel. masked_bits: bits that a store is
    to keep of each token, 0 for all: the least certain of its vocabulary id, or with centroids those in which its
    tokens differ most, as the next layer sees them. calibrate: False restores plain ±1, an ablation. Raises
    `ValueError` where there are no passages, for masked_bits out of range, and for centroids without calibration.
    """
    if not 0 <= masked_bits <= reader.channels:
        raise ValueError(f"masked_bits must be in 0..{reader.channels}, got {masked_bits}")
    if centroids and not calibrate:
        raise ValueError("centroids: a state that is restored through them is a calibrated one")
    plain = replace(reader, code=None)
    norm = BertFusionEncoder(reader.model, reader.query_length).cut_norm(reader.settings)
    moments = _Moments(reader.tokenizer.vocabulary_size, reader.channels) if masked_bits or centroids else None
    observe = None if moments is None else moments.add
    magnitude = calibrate_residual_scale(plain, passages, passage_length, observe).cpu()
    weight, bias = norm.weight.detach().cpu(), norm.bias.detach().cpu()
    if centroids:
        table = moments.means()
        distance = moments.square_distances(table)
        # Mean magnitude of a normal variable by its variance.
        scale = weight * (distance.sum(0) / moments.tokens.sum() * 2 / math.pi).sqrt()
        code = SignCode(scale, bias, weight=weight, centroids=table)
        if masked_bits:
            code.mask = _largest(_drawn_to_overall(distance, moments.tokens).sqrt() * weight.abs(), masked_bits)
            code.majority = torch.zeros_like(code.mask)
    elif calibrate:
        code = SignCode(weight * magnitude, bias)
    else:
        code = SignCode(torch.ones_like(magnitude), torch.zeros_like(magnitude), calibrated=False)
    if masked_bits and not centroids:
        tables = moments.signs.tables(masked_bits)
        code.mask, code.majority = torch.from_numpy(tables.mask), torch.from_numpy(tables.majority)
    return replace(reader, code=code.to(reader.device))


def tables_of(code: SignCode) -> TokenTables | None:
    """The tables of a store of this code's bits; None where all bits are stored."""
    if code.mask is None:
        return None
    stored = int(btr_kernels.unpack_bits(code.mask[:1], code.channels).gt(0).sum())
    return TokenTables(code.mask.cpu().numpy(), code.majority.cpu().numpy(), stored)


class _Moments:
    """Sums by vocabulary id: of states, of their squares and of their signs."""

    def __init__(self, vocabulary: int, channels: int):
        self.signs = TokenStatistics.empty(vocabulary, channels)
        self._sums, self._squares = torch.zeros(vocabulary, channels), torch.zeros(vocabulary, channels)

    @property
    def tokens(self) -> Tensor:
        return self.signs.tokens

    def add(self, ids: list[list[int]], states: Tensor) -> None:
        flat, states = torch.tensor(list(chain.from_iterable(ids))), states.cpu().float()
        self.signs.add(btr_kernels.pack_bits(states), flat)
        self._sums.index_add_(0, flat, states)
        self._squares.index_add_(0, flat, states.square())

    def means(self) -> Tensor:
        """Of each id, drawn to the mean of all tokens where few were seen, `(V, d)`."""
        return _drawn_to_overall(self._sums, self.tokens)

    def square_distances(self, centroids: Tensor) -> Tensor:
        """The sum of each id's squared distances to its centroid, by channel, `(V, d)`."""
        counted = self.tokens[:, None] * centroids.square()
        return (self._squares - 2 * centroids * self._sums + counted).clamp(min=0)


def _drawn_to_overall(sums: Tensor, tokens: Tensor) -> Tensor:
    overall = sums.sum(0) / tokens.sum()
    return (sums + PRIOR_TOKENS * overall) / (tokens[:, None] + PRIOR_TOKENS)


def _largest(values: Tensor, count: int) -> Tensor:
    """uint8 `(V, w)`: bits of the `count` largest channels of each row `(V, d)`; of equals the first."""
    chosen = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    return btr_kernels.pack_bits(torch.zeros_like(values).scatter_(1, chosen, 1.0) - 0.5)
