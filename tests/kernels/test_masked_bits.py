"""Masked bits: examples, the way there and back, what is refused, and what becomes of tables that are not as they
should be. The definitions, strides and backends are tested by the rows of `cases`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import btr_kernels as bk
from btr_kernels import reference
from btr_kernels.backends import native

from .comparison import assert_exact

INT32, INT64, UINT8 = torch.int32, torch.int64, torch.uint8

BITS = torch.tensor([[0b1000, 0], [0b0011, 0], [0, 0b11]], dtype=UINT8)
IDS = torch.tensor([0, 1, 1])
MASK = torch.tensor([[0b1010, 0b0001], [0b0110, 0b0010]], dtype=UINT8)
FILL = torch.tensor([[0b0001, 0], [0, 0b1000]], dtype=UINT8)
CODES = torch.tensor([[0b010], [0b001], [0b100]], dtype=UINT8)


def masks(rows: int, w: int, k: int, seed: int = 0) -> torch.Tensor:
    """k of the channels in each row, some neighbours more often than others: words that are full, and empty ones."""
    random = np.random.default_rng(seed)
    score = random.random((rows, 8 * w)) + random.random((rows, -(-w // 8))).repeat(64, axis=1)[:, : 8 * w]
    return torch.from_numpy(np.packbits(score.argsort(-1).argsort(-1) < k, axis=-1, bitorder="little"))


def bits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=UINT8)


def ids(tokens: int, rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(rows, (tokens,), generator=torch.Generator().manual_seed(seed))


def test_bits_of_the_mask_in_order_of_channels(implementation):
    assert bk.compress_bits(BITS, IDS, MASK, 3).tolist() == CODES.tolist()


def test_other_channels_come_from_the_fill_and_only_they(implementation):
    for fill in (FILL, FILL | MASK):
        expanded = bk.expand_bits(CODES, IDS, MASK, fill)
        assert expanded.tolist() == [[0b1001, 0], [0b0010, 0b1000], [0, 0b1010]]


@pytest.mark.parametrize("w", [1, 7, 8, 9, 12, 16, 95, 96, 97, 128, 129])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 1.0])
def test_there_and_back_keeps_the_bits_of_the_mask(w, share, implementation):
    """Enough tokens for codes with and without room behind them, and masks with words of up to 64 channels."""
    rows, tokens, k = 5, 300, max(1, int(share * 8 * w))
    mask, fill, token_ids, x = masks(rows, w, k), bits(rows, w, seed=1), ids(tokens, rows), bits(tokens, w, seed=2)
    codes = bk.compress_bits(x, token_ids, mask, k)
    assert codes.shape == (tokens, (k + 7) // 8)
    assert_exact("codes", codes, reference.compress_bits(x, token_ids, mask, k))
    used = mask[token_ids]
    assert_exact("bits", bk.expand_bits(codes, token_ids, mask, fill), (x & used) | (fill[token_ids] & ~used))


@pytest.mark.parametrize("dtype", [INT32, INT64])
def test_ids_of_any_shape_and_kind(dtype, implementation):
    mask, fill, token_ids = masks(9, 12, 30), bits(9, 12), ids(6, 9).to(dtype)
    codes = bk.compress_bits(bits(6, 12), token_ids, mask, 30)
    stacked = bk.expand_bits(codes.view(2, 3, 4), token_ids.view(2, 3), mask, fill)
    assert_exact("bits", stacked.view(6, 12), bk.expand_bits(codes, token_ids, mask, fill))
    assert bk.expand_bits(codes[0], token_ids[0], mask, fill).tolist() == stacked[0, 0].tolist()


def test_no_tokens_and_no_table(implementation):
    nothing, table = torch.empty(0, 3, dtype=UINT8), torch.empty(0, 3, dtype=UINT8)
    assert bk.compress_bits(nothing, IDS[:0], table, 20).shape == (0, 3)
    assert bk.expand_bits(nothing[:, :2], IDS[:0], table, table).shape == (0, 3)


@pytest.mark.parametrize("w", [3, 96])
def test_bits_past_a_code_are_zero(w, implementation):
    """Masks of all channels, of which a code of one byte holds the first eight."""
    full, tokens = torch.full((1, w), 255, dtype=UINT8), 150
    expanded = bk.expand_bits(bits(tokens, 1) | 128, torch.zeros(tokens, dtype=INT64), full, full)
    assert (expanded[:, 0] >= 128).all() and not expanded[:, 1:].any()


WRONG_TYPES = [
    pytest.param(name, call, id=f"{i}-{name}")
    for i, (name, call) in enumerate(
        (
            ("bits", lambda: bk.compress_bits([[1]], IDS, MASK, 3)),
            ("bits", lambda: bk.compress_bits(BITS.int(), IDS, MASK, 3)),
            ("ids", lambda: bk.compress_bits(BITS, [0, 1, 1], MASK, 3)),
            ("ids", lambda: bk.compress_bits(BITS, None, MASK, 3)),
            ("ids", lambda: bk.compress_bits(BITS, IDS.short(), MASK, 3)),
            ("ids", lambda: bk.expand_bits(CODES, IDS.float(), MASK, FILL)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, None, 3)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, MASK.bool(), 3)),
            ("mask", lambda: bk.expand_bits(CODES, IDS, "mask", FILL)),
            ("k", lambda: bk.compress_bits(BITS, IDS, MASK, 3.0)),
            ("k", lambda: bk.compress_bits(BITS, IDS, MASK, True)),
            ("codes", lambda: bk.expand_bits(None, IDS, MASK, FILL)),
            ("codes", lambda: bk.expand_bits(CODES.long(), IDS, MASK, FILL)),
            ("fill", lambda: bk.expand_bits(CODES, IDS, MASK, None)),
            ("fill", lambda: bk.expand_bits(CODES, IDS, MASK, FILL.to(torch.int8))),
            ("out", lambda: bk.expand_bits(CODES, IDS, MASK, FILL, out=BITS.int())),
            ("out", lambda: bk.compress_bits(BITS, IDS, MASK, 3, out=3)),
        )
    )
]

WRONG_VALUES = [
    pytest.param(name, call, id=f"{i}-{name}")
    for i, (name, call) in enumerate(
        (
            ("bits", lambda: bk.compress_bits(BITS[0, 0], IDS[0], MASK, 3)),
            ("bits", lambda: bk.compress_bits(BITS[:, :0], IDS, MASK[:, :0], 1)),
            ("ids", lambda: bk.compress_bits(BITS, IDS[:2], MASK, 3)),
            ("ids", lambda: bk.compress_bits(BITS, IDS[:, None], MASK, 3)),
            ("ids", lambda: bk.expand_bits(CODES, IDS[None], MASK, FILL)),
            ("ids", lambda: bk.compress_bits(BITS, IDS.to("meta"), MASK, 3)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, MASK[0], 3)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, MASK[:, :1], 3)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, MASK[:0], 3)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, MASK.to("meta"), 3)),
            ("mask", lambda: bk.expand_bits(CODES, IDS, MASK[None], FILL)),
            ("mask", lambda: bk.expand_bits(CODES, IDS, MASK[:0], FILL[:0])),
            ("k", lambda: bk.compress_bits(BITS, IDS, MASK, 0)),
            ("k", lambda: bk.compress_bits(BITS, IDS, MASK, 17)),
            ("codes", lambda: bk.expand_bits(CODES[:, :0], IDS, MASK, FILL)),
            ("codes", lambda: bk.expand_bits(CODES.repeat(1, 3), IDS, MASK, FILL)),
            ("fill", lambda: bk.expand_bits(CODES, IDS, MASK, FILL[:1])),
            ("fill", lambda: bk.expand_bits(CODES, IDS, MASK, FILL.to("meta"))),
            ("out", lambda: bk.expand_bits(CODES, IDS, MASK, FILL, out=CODES)),
            # Values inside tensors.
            ("ids", lambda: bk.compress_bits(BITS, IDS + 1, MASK, 3)),
            ("ids", lambda: bk.expand_bits(CODES, IDS + 1, MASK, FILL)),
            ("ids", lambda: bk.expand_bits(CODES, IDS.int() - 1, MASK, FILL)),
            ("ids", lambda: bk.expand_bits(CODES, IDS - 2**40, MASK, FILL)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, MASK, 2)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, MASK, 4)),
            ("mask", lambda: bk.compress_bits(BITS, IDS, MASK & 1, 3)),
        )
    )
]


@pytest.mark.parametrize("name, call", WRONG_TYPES)
def test_wrong_type_is_a_type_error_naming_the_argument(name, call, implementation):
    with pytest.raises(TypeError, match=f"^{name}: expected "):
        call()


@pytest.mark.parametrize("name, call", WRONG_VALUES)
def test_wrong_shape_device_or_value_is_a_value_error_naming_the_argument(name, call, implementation):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        call()


def test_only_rows_in_use_are_checked(implementation):
    mask = torch.cat([MASK, torch.full((1, 2), 255, dtype=UINT8)])
    assert bk.compress_bits(BITS, IDS, mask, 3).tolist() == CODES.tolist()


@pytest.mark.skipif(native.load()[0] is None, reason="the compiled library is missing")
class TestPastTheChecks:
    """The native operators, as if values had changed since they were checked: those of the reference, in bounds."""

    IDS = torch.tensor([-(2**63), -1, 0, 1, 2, 4, 5, 2**31, 2**63 - 1]).repeat(30)

    @pytest.mark.parametrize("w, k", [(1, 1), (9, 40), (96, 216), (96, 768), (128, 5)])
    def test_any_ids_and_masks(self, w, k, implementation):
        tokens, c = len(self.IDS), (k + 7) // 8
        for mask in (bits(5, w), torch.full((5, w), 255, dtype=UINT8), torch.zeros(5, w, dtype=UINT8)):
            out, x = torch.full((tokens, c), 7, dtype=UINT8), bits(tokens, w, seed=1)
            torch.ops.btr_native.compress_bits(x, self.IDS, mask, k, out)
            assert_exact("codes", out, reference.compress_bits(x, self.IDS, mask, k))
            out, fill = torch.full((tokens, w), 7, dtype=UINT8), bits(5, w, seed=2)
            torch.ops.btr_native.expand_bits(bits(tokens, c), self.IDS, mask, fill, out)
            assert_exact("bits", out, reference.expand_bits(bits(tokens, c), self.IDS, mask, fill))
            assert not torch.ops.btr_native.masks_hold(self.IDS, mask, k)

    def test_masks_hold(self, implementation):
        for w, k in ((1, 3), (9, 40), (96, 216)):
            mask, token_ids = masks(5, w, k), ids(50, 5)
            mask[4] = 0
            token_ids[token_ids == 4] = 3
            hold = torch.ops.btr_native.masks_hold
            assert hold(token_ids, mask, k) and not hold(token_ids, mask, k + 1)
            token_ids[-1] = 4
            assert not hold(token_ids, mask, k)
            assert hold(token_ids[:0], mask[:0], k)
