"""Arguments of the operators on masked bits."""

from __future__ import annotations

import numpy as np
import torch

from .picks import bytes_for, leading


def _ids(picks, shape, rows):
    return picks.laid_out(picks.integers(shape, 0, max(rows - 1, 0), picks.choice((torch.int32, torch.int64))))


def _masks(picks, rows, d, k):
    """k of the d channels in each row."""
    chosen = picks.random.random((rows, d)).argsort(-1) < k
    return picks.laid_out(torch.from_numpy(np.packbits(chosen, axis=-1, bitorder="little")))


def _rows_of_table(picks, tokens):
    return picks.choice((1, 3, 40) if tokens else (0, 1))


def compress_bits(picks, tokens, d):
    shape, rows, k = leading(picks, tokens), _rows_of_table(picks, tokens), picks.choice((1, d, picks.integer(1, d)))
    return picks.bits((*shape, bytes_for(d))), _ids(picks, shape, rows), _masks(picks, rows, d, k), k


def expand_bits(picks, tokens, d):
    shape, rows, w = leading(picks, tokens), _rows_of_table(picks, tokens), bytes_for(d)
    k = picks.choice((1, d, picks.integer(1, d)))
    mask = picks.choice((_masks(picks, rows, d, k), picks.bits((rows, w))))  # some with more bits than the code
    return picks.bits((*shape, bytes_for(k))), _ids(picks, shape, rows), mask, picks.bits((rows, w))
