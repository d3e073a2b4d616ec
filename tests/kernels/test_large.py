"""More than 2**31 elements: the offsets of no operator are 32 bits wide."""

from __future__ import annotations

import os

import pytest
import torch

import btr_kernels as bk

GIB = 2**30


def free_memory() -> int:
    with open("/proc/meminfo") as lines:
        found = dict(line.split(":") for line in lines)
    return int(found["MemAvailable"].split()[0]) * 1024


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bk.backends()["cpu"].available, reason="the reference would need tens of gigabytes"),
    pytest.mark.skipif(not os.path.exists("/proc/meminfo") or free_memory() < 8 * GIB, reason="needs 8 GB of memory"),
]

TOKENS, D = 2**22 + 3, 520  # 2**31 + 2**25 + ... channels


def test_packing_and_unpacking_past_two_to_the_31_elements():
    with bk.use_backend("auto"):
        x = torch.zeros(TOKENS, D, dtype=torch.bool)
        assert x.numel() > 2**31
        x[::2, 3] = True
        x[-1, -1] = True
        bits = bk.pack_bits(x)
        assert bits.shape == (TOKENS, 65)
        assert (bits[:-1:2, 0] == 8).all() and (bits[1:-1:2] == 0).all()
        assert bits[-1, 64] == 128
        del x
        y = bk.unpack_bits(bits, D, dtype=torch.float16)
    ones = torch.tensor([2 * 0 - 1.0] * 3 + [1.0] + [-1.0] * (D - 4), dtype=torch.float16)
    for row in (0, 2, 2**21, TOKENS - 3):
        assert torch.equal(y[row], ones)
    assert y[-1, -1] == 1 and y[-1, -2] == -1 and (y[-2] == -1).all()


def test_packed_bytes_past_two_to_the_31():
    codes = torch.zeros(2**25 + 5, 65, dtype=torch.uint8)
    assert codes.numel() > 2**31
    codes[-2] = 255
    near = bk.hamming_topk(torch.full((1, 65), 255, dtype=torch.uint8), codes, 2)
    assert near.indices.tolist() == [[2**25 + 3, 0]] and near.distances.tolist() == [[0, 520]]


def test_product_with_more_than_two_to_the_31_results():
    tokens, n = 2**21 + 1, 1025
    bits = torch.zeros(tokens, 1, dtype=torch.uint8)
    bits[-1] = 1
    weight = torch.arange(n, dtype=torch.float16)[:, None] % 7
    y = bk.unpack_matmul(bits, weight)
    assert y.numel() > 2**31
    assert torch.equal(y[-1], weight[:, 0]) and torch.equal(y[-2], -weight[:, 0]) and torch.equal(y[0], -weight[:, 0])
