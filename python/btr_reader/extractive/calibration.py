"""What an extractive reader's bits are restored with, measured on text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

import btr_kernels

from ..centroids import centroid_code
from ..encoding import calibrate_residual_scale
from ..passages import Passage
from ..sign_code import SignCode
from ..token_statistics import TokenStatistics
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
    progress: bool = False,
) -> ExtractiveReader:
    """The reader with a new code (`SignCode`) whose constants and first parameters are measured on passages.

    A state's scale is the weight of its norm times the mean magnitude of the channel. masked_bits: bits that a store is
    to keep of each token, 0 for all: the least certain of its vocabulary id. centroids: bits are of what vocabulary id
    and place in the passage do not foretell (`SignCode`), which takes a second pass; masked_bits are then those in
    which the tokens of an id differ most, as the next layer sees them. calibrate: False restores plain ±1, an ablation.
    Raises `ValueError` where there are no passages, for masked_bits out of range, and for centroids without
    calibration.
    """
    if not 0 <= masked_bits <= reader.channels:
        raise ValueError(f"masked_bits must be in 0..{reader.channels}, got {masked_bits}")
    if centroids and not calibrate:
        raise ValueError("centroids: they need calibrate: what they leave has a scale of its own")
    plain = replace(reader, code=None)
    norm = BertFusionEncoder(reader.model, reader.query_length).cut_norm(reader.settings)
    weight, bias = norm.weight.detach().cpu(), norm.bias.detach().cpu()
    if centroids:
        code = centroid_code(
            plain, passages, passage_length, weight, bias, weight, masked_bits, reader.longest_passage, progress
        )
        return replace(reader, code=code.to(reader.device))
    signs = TokenStatistics.empty(reader.tokenizer.vocabulary_size, reader.channels)

    def observe(ids: list[list[int]], states: Tensor) -> None:
        signs.add(btr_kernels.pack_bits(states).cpu(), torch.tensor(list(chain.from_iterable(ids))))

    magnitude = calibrate_residual_scale(plain, passages, passage_length, observe if masked_bits else None).cpu()
    if calibrate:
        code = SignCode(weight * magnitude, bias)
    else:
        code = SignCode(torch.ones_like(magnitude), torch.zeros_like(magnitude), calibrated=False)
    if masked_bits:
        tables = signs.tables(masked_bits)
        code.mask, code.majority = torch.from_numpy(tables.mask), torch.from_numpy(tables.majority)
    return replace(reader, code=code.to(reader.device))
