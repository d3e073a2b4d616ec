"""`torch.ops.btr_native.*` called directly: what would read or write out of bounds is an error, never a crash."""

import pytest
import torch

from btr_kernels.backends import native

if native.load()[0] is None:
    pytest.skip(native.load()[1], allow_module_level=True)

ops = torch.ops.btr_native


def u8(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def i32(*shape, value=0):
    return torch.full(shape, value, dtype=torch.int32)


def i64(*values):
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ops.pack_bits(torch.ones(3, 8), u8(3, 2)), "out: "),
        (lambda: ops.pack_bits(torch.ones(3, 8, dtype=torch.float64), u8(3, 1)), "x: "),
        (lambda: ops.pack_bits(torch.ones(8, 3).T, u8(3, 1)), "x: "),
        (lambda: ops.pack_bits(torch.tensor(1.0), u8(1)), "dimension"),
        (lambda: ops.pack_bits(torch.ones(0), u8(0)), "x: "),
        (lambda: ops.unpack_bits(u8(3, 1), torch.ones(9), None, None, torch.ones(3, 8)), "scale: "),
        (lambda: ops.unpack_matmul(u8(3, 2), torch.ones(0, 0), None, None, None, None, torch.ones(3, 0)), "weight: "),
        (lambda: ops.unpack_matmul(u8(3, 2), torch.ones(4, 8), None, None, None, None, torch.ones(3, 4)), "bits: "),
        (lambda: ops.hamming_distance(u8(2, 0), u8(2, 0), i32(2, 2)), "a: "),
        (lambda: ops.hamming_distance(u8(2, 1), u8(3, 1), i32(2, 2)), "b: "),
        (lambda: ops.hamming_topk(u8(2, 1), u8(3, 1), i32(2, 4), i32(2, 4).long()), "k: "),
        (lambda: ops.match_tokens(u8(2, 3, 0), i64(1, 1), None, None, i32(2, 3), i32(2)), "bits: "),
        (lambda: ops.match_tokens(u8(6, 1), i64(1), None, i64(0, 9), i32(6), i32(1)), "cu_seqlens"),
        (lambda: ops.merge_bits(u8(1, 6, 2), i32(1, 6, value=3), None, None, None, u8(1, 3, 2), i32(1, 3)), "slot: "),
        (lambda: ops.merge_bits(u8(1, 6, 2), i32(1, 6), i32(1, 6, value=-7), None, None, u8(1, 3, 2), i32(1, 3)), "sizes"),
        (lambda: ops.merge_bits(u8(1, 2, 2), i32(1, 2), i32(1, 2, value=2**31 - 1), None, None, u8(1, 3, 2), i32(1, 3)), "sizes"),
        (lambda: ops.merge_bits(u8(6, 2), i32(6), None, i64(0, 6), i64(0, 9), u8(3, 2), i32(3)), "cu_seqlens"),
        (lambda: ops.merge_bits(u8(6, 2), i32(6), None, i64(-5, 6), i64(0, 3), u8(3, 2), i32(3)), "cu_seqlens"),
        (lambda: ops.merge_tokens(torch.ones(1, 6, 8), i32(1, 6), None, None, None, torch.ones(2, 3, 8), i32(2, 3)), "out: "),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, named):
    with pytest.raises(RuntimeError, match=named):
        call()


def test_lengths_beyond_the_passage_are_clamped():
    slot, lengths = i32(2, 3), i32(2)
    ops.match_tokens(u8(2, 3, 1), i64(1, 1), i64(9, -4), None, slot, lengths)
    assert lengths.tolist() == [1, 0]
    assert slot.tolist() == [[0, 0, 0], [-1, -1, -1]]
