"""`torch.ops.btr_native.*` called directly: what would read or write out of bounds is an error, never a crash."""

import sys

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


def matmul(weight, n=4, channel_major=False, scale=None, factors=None):
    return ops.unpack_matmul(u8(3, 2), weight, channel_major, False, scale, factors, None, None, torch.ones(3, n))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ops.pack_bits(torch.ones(3, 8), u8(3, 2)), "out: "),
        (lambda: ops.pack_bits(torch.ones(3, 8, dtype=torch.float64), u8(3, 1)), "x: "),
        (lambda: ops.pack_bits(torch.ones(8, 3).T, u8(3, 1)), "x: "),
        (lambda: ops.pack_bits(torch.tensor(1.0), u8(1)), "dimension"),
        (lambda: ops.pack_bits(torch.ones(0), u8(0)), "x: "),
        (lambda: ops.unpack_bits(u8(3, 1), torch.ones(9), None, None, torch.ones(3, 8)), "scale: "),
        (lambda: ops.compress_bits(u8(3, 2), i64(0, 0, 0), u8(1, 2), 0, u8(3, 0)), "k: "),
        (lambda: ops.compress_bits(u8(3, 2), i64(0, 0, 0), u8(1, 2), 17, u8(3, 3)), "k: "),
        (lambda: ops.compress_bits(u8(3, 2), i64(0, 0, 0), u8(1, 2), 9, u8(3, 1)), "out: "),
        (lambda: ops.compress_bits(u8(3, 2), i64(0, 0), u8(1, 2), 9, u8(3, 2)), "ids: "),
        (lambda: ops.compress_bits(u8(3, 2), i64(0, 0, 0), u8(0, 2), 9, u8(3, 2)), "mask: "),
        (lambda: ops.expand_bits(u8(3, 1), i64(0, 0, 0), u8(1, 3), u8(1, 2), u8(3, 2)), "mask: "),
        (lambda: ops.expand_bits(u8(3, 1), i64(0, 0, 0), u8(2, 2), u8(1, 2), u8(3, 2)), "fill: "),
        (lambda: ops.expand_bits(u8(3, 3), i64(0, 0, 0), u8(1, 2), u8(1, 2), u8(3, 2)), "codes: "),
        (lambda: ops.expand_bits(u8(3, 1), i32(3), u8(1, 2), u8(1, 2), u8(3, 2)), "ids: "),
        (lambda: ops.masks_hold(i64(0), u8(0, 2), 3), "mask: "),
        (lambda: matmul(torch.ones(0, 0), n=0), "weight: "),
        (lambda: matmul(torch.ones(4, 8)), "bits: "),
        (lambda: matmul(torch.ones(4, 16, dtype=torch.int8)), "factors: "),
        (lambda: matmul(torch.ones(4, 16, dtype=torch.int8), factors=torch.ones(1, 4)), "weight: "),
        (lambda: matmul(torch.ones(16, 4), channel_major=True, scale=torch.ones(16)), "scale: "),
        (lambda: matmul(torch.ones(16, 4).short(), channel_major=True, factors=torch.ones(2, 4)), "factors: "),
        (lambda: ops.hamming_distance(u8(2, 0), u8(2, 0), i32(2, 2)), "a: "),
        (lambda: ops.hamming_distance(u8(2, 1), u8(3, 1), i32(2, 2)), "b: "),
        (lambda: ops.hamming_topk(u8(2, 1), u8(3, 1), i32(2, 4), i32(2, 4).long()), "k: "),
        (lambda: ops.match_tokens(u8(2, 3, 0), i64(1, 1), None, None, i32(2, 3), i32(2)), "bits: "),
        (lambda: ops.match_tokens(u8(6, 1), i64(1), None, i64(0, 9), i32(6), i32(1)), "cu_seqlens"),
        (lambda: ops.merge_bits(u8(6, 2), i32(6), None, i64(0, 6), i64(0, 9), u8(3, 2), i32(3)), "cu_seqlens"),
        (lambda: ops.merge_bits(u8(6, 2), i32(6), None, i64(-5, 6), i64(0, 3), u8(3, 2), i32(3)), "cu_seqlens"),
        (lambda: ops.merge_tokens(torch.ones(1, 6, 8), i32(1, 6), None, None, None, torch.ones(2, 3, 8), i32(2, 3)), "rows: "),
        (lambda: ops.merge_tokens(torch.ones(1, 6, 8), i32(1, 6), None, None, None, torch.ones(1, 3, 9), i32(1, 3)), "out: "),
        (lambda: ops.merge_tokens(torch.ones(1, 6, 8), i32(1, 6), None, None, None, torch.ones(1, 3, 8), i32(1, 4)), "new_sizes: "),
        (lambda: ops.merge_tokens_backward(torch.ones(1, 3, 8), i32(1, 6), None, i32(1, 4), None, None, torch.ones(1, 6, 8)), "new_sizes: "),
        (lambda: ops.merge_tokens_backward(torch.ones(1, 3, 8), i32(1, 6), None, i32(1, 3), None, None, torch.ones(1, 5, 8)), "slot: "),
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


@pytest.mark.parametrize("slot", [3, -2, 2**31 - 1, -(2**31)])
def test_tokens_whose_slot_is_no_row_are_left_out(slot):
    """These operators do not check the values of slots, so none may lead out of the passage."""
    slots = i32(1, 6, value=slot)
    slots[0, 1] = 2
    bits, sizes = torch.full((1, 3, 2), 7, dtype=torch.uint8), i32(1, 3, value=7)
    ops.merge_bits(u8(1, 6, 2) + 5, slots, None, None, None, bits, sizes)
    assert bits[0].tolist() == [[0, 0], [0, 0], [5, 5]] and sizes[0].tolist() == [0, 0, 1]
    mean = torch.full((1, 3, 9), 7.0)
    ops.merge_tokens(torch.full((1, 6, 9), 5.0), slots, None, None, None, mean, sizes)
    assert mean[0, :, 0].tolist() == [0, 0, 5] and sizes[0].tolist() == [0, 0, 1]
    grad = torch.full((1, 6, 9), 7.0)
    ops.merge_tokens_backward(mean, slots, None, sizes, None, None, grad)
    assert grad[0, :, 0].tolist() == [0, 5, 0, 0, 0, 0]


@pytest.mark.parametrize("size", [-7, -1, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("tokens", [1, 2, 3, 70])
def test_impossible_sizes_are_harmless(size, tokens):
    """Nothing is asked of the result, and the sanitizers see no more than that: no crash, and no endless loop."""
    sizes = i32(1, tokens, value=size)
    bits = u8(1, 2, 40) + 9
    ops.merge_bits(u8(1, tokens, 40) + 255, i32(1, tokens), sizes, None, None, bits, i32(1, 2))
    assert bits[0, 0].unique().tolist() in ([0], [255]) and not bits[0, 1].any()
    mean = torch.full((1, 2, 9), 7.0)
    ops.merge_tokens(torch.ones(1, tokens, 9), i32(1, tokens), sizes, None, None, mean, i32(1, 2))
    assert mean[0, 0].isfinite().all() and not mean[0, 1].any()


@pytest.mark.parametrize("seed", range(40))
def test_a_quick_yes_means_that_the_checks_find_nothing(seed, monkeypatch):
    """`plan_fits` and `lengths_fit` against the checks in PyTorch that they stand before."""
    merging = sys.modules["btr_kernels.ops.merging"]
    quick = merging.native.says_yes
    monkeypatch.setattr(merging.native, "says_yes", lambda *_: False)
    g = torch.Generator().manual_seed(seed)

    def ints(low, high, *shape):
        dtype = (torch.int32, torch.int64)[int(torch.randint(2, (), generator=g))]
        values = torch.randint(low, high + 1, shape, generator=g, dtype=dtype)
        return values if seed % 2 else values.clamp(low + 1, high - 1)  # mostly right, or at and past the ends

    def passes(check, *args):
        try:
            check(*args)
        except ValueError:
            return False
        return True

    tokens, rows = 12, 5
    slot, sizes, keep, lengths = ints(-2, rows, 3, 4).int(), ints(-1, 9, 3, 4).int(), ints(0, 9, 3), ints(-1, 5, 3)
    for s in (None, sizes, sizes.abs() * 2**27):
        args = (slot, s, rows, None, None)
        assert quick("plan_fits", *args) == passes(merging._check_merge_values, u8(3, 4, 2), *args)
        assert quick("plan_fits", slot.T, s, rows, None, None) in (False, quick("plan_fits", *args))
    assert quick("lengths_fit", keep, lengths, None, 4) == passes(
        merging._check_match_values, u8(3, 4, 2), keep, lengths, None
    )
    for middle, end, room, last in (
        (5, 12, 2, 5),
        (5, 12, 5, 5),
        (0, 12, 0, 4),
        (7, 11, 2, 5),
        (13, 12, 2, 5),
        (5, 12, 2, 6),
    ):
        cu_in, cu_out = torch.tensor([0, middle, end], dtype=keep.dtype), torch.tensor([0, room, last])
        args = (slot.flatten(), None, rows, cu_in, cu_out)
        assert quick("plan_fits", *args) == passes(merging._check_merge_values, u8(tokens, 2), *args)
        two = keep[:2]
        assert quick("lengths_fit", two, None, cu_in, tokens) == passes(
            merging._check_match_values, u8(tokens, 2), two, None, cu_in
        )
    slot = torch.zeros(12, dtype=torch.int32)
    assert quick("plan_fits", slot, None, rows, torch.tensor([0, 5, 12]), torch.tensor([0, 2, 5]))
    assert not quick("plan_fits", slot, None, rows, torch.tensor([1, 12]), torch.tensor([0, 5]))
    assert not quick("plan_fits", slot.to("meta"), None, rows, None, None)
