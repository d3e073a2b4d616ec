"""Bits of what vocabulary id and place in the passage do not foretell: what these foretell, measured on text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor
from tqdm import tqdm

import btr_kernels

from .encoding import PassageReader, calibrate_residual_scale
from .passages import Passage
from .sign_code import SignCode
from .token_statistics import PRIOR_TOKENS


@torch.no_grad()
def centroid_code(
    reader: PassageReader,
    passages: Sequence[Passage],
    passage_length: int,
    weight: Tensor,
    bias: Tensor,
    importance: Tensor,
    masked_bits: int = 0,
    places: int | None = None,
    progress: bool = False,
) -> SignCode:
    """A code with centroids (`SignCode`), on the CPU, measured on the passages in two passes over them.

    reader: one without a code. weight, bias: `(d,)`, which turn what it keeps of a passage into the states that are
    restored, value * weight + bias. importance: `(d,)`, how much the next layer makes of a channel of the values.
    masked_bits: bits that a store is to keep of each token, 0 for all: those in which the tokens of its id differ most,
    by importance. places: how many the code knows, passage_length unless told. Raises `ValueError` where there are no
    passages and for masked_bits out of range.
    """
    if not 0 <= masked_bits <= reader.channels:
        raise ValueError(f"masked_bits must be in 0..{reader.channels}, got {masked_bits}")
    # One after the other: the means of places first, since every id stands at most of them, then of what is left by id.
    of_places = _PlaceMeans(passage_length if places is None else places, reader.channels)

    def shown(what: str) -> Iterator[Passage]:
        return iter(tqdm(passages, desc=f"measure {what}", unit=" passages", disable=not progress))

    calibrate_residual_scale(reader, shown("places"), passage_length, of_places.add)
    table = of_places.means()
    moments = _Moments(reader.tokenizer.vocabulary_size, table)
    calibrate_residual_scale(reader, shown("ids"), passage_length, moments.add)
    centroids, deviation = moments.means_and_deviations()
    stored = torch.ones_like(deviation)
    code = SignCode(weight, bias, weight=weight, centroids=centroids, places=table)
    if masked_bits:
        code.mask = _largest(deviation * importance.abs(), masked_bits)
        code.majority = torch.zeros_like(code.mask)
        stored = btr_kernels.unpack_bits(code.mask, reader.channels).clamp(min=0)
    # Mean magnitude of a normal variable by its deviation, over the tokens that store the channel; one that none stores
    # is never read.
    counts = stored * moments.tokens[:, None]
    mean = (counts * deviation).sum(0) / counts.sum(0).clamp(min=1)
    code.scale.data.mul_(mean * math.sqrt(2 / math.pi))
    return code


def _places(ids: Sequence[Sequence[int]]) -> Tensor:
    """Where in its passage each token stands, of all passages one after the other."""
    return torch.cat([torch.arange(len(passage)) for passage in ids])


class _PlaceMeans:
    """The mean of states by place in the passage, drawn to that of all places where few were seen.

    Passages end with the same token, which is left out: where most of them are cut it would be all there is.
    """

    def __init__(self, longest: int, channels: int):
        self._sums, self._tokens = torch.zeros(longest, channels), torch.zeros(longest)

    def add(self, ids: list[list[int]], states: Tensor) -> None:
        places = _places(ids)
        inner = torch.ones(len(places))
        inner[torch.tensor([len(passage) for passage in ids]).cumsum(0) - 1] = 0
        self._sums.index_add_(0, places, states.cpu().float() * inner[:, None])
        self._tokens.index_add_(0, places, inner)

    def means(self) -> Tensor:
        """`(T, d)`; a place behind all that were seen is as the last of them."""
        means, seen = _drawn_to_overall(self._sums, self._tokens), max(int(self._tokens.count_nonzero()), 1)
        means[seen:] = means[seen - 1]
        return means


class _Moments:
    """Sums by vocabulary id, of states less their place's mean and of the squares of these."""

    def __init__(self, vocabulary: int, places: Tensor):
        self.tokens = torch.zeros(vocabulary, dtype=torch.int64)
        self._places = places
        # A deviation may be a hundredth of the mean, and the difference of their squares a ten thousandth.
        self._sums, self._squares = (torch.zeros(vocabulary, places.shape[1], dtype=torch.float64) for _ in range(2))

    def add(self, ids: list[list[int]], states: Tensor) -> None:
        flat, left = torch.tensor(list(chain.from_iterable(ids))), states.cpu().double() - self._places[_places(ids)]
        self.tokens.index_add_(0, flat, torch.ones_like(flat))
        self._sums.index_add_(0, flat, left)
        self._squares.index_add_(0, flat, left.square())

    def means_and_deviations(self) -> tuple[Tensor, Tensor]:
        """Of each id, `(V, d)`: the mean, and the root of the mean squared distance to it; both are drawn to those of
        all tokens where few were seen."""
        means = _drawn_to_overall(self._sums, self.tokens)
        counted = self.tokens[:, None] * means.square()
        distances = (self._squares - 2 * means * self._sums + counted).clamp(min=0)
        return means.float(), _drawn_to_overall(distances, self.tokens).sqrt().float()


def _drawn_to_overall(sums: Tensor, tokens: Tensor) -> Tensor:
    overall = sums.sum(0) / tokens.sum().clamp(min=1)
    return (sums + PRIOR_TOKENS * overall) / (tokens[:, None] + PRIOR_TOKENS)


def _largest(values: Tensor, count: int) -> Tensor:
    """uint8 `(V, w)`: bits of the `count` largest channels of each row `(V, d)`; of equals the first."""
    chosen = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    return btr_kernels.pack_bits(torch.zeros_like(values).scatter_(1, chosen, 1.0) - 0.5)
