"""Matching and merging: examples by hand, packed against padded, several rounds, ties, merges of merges."""

from __future__ import annotations

import math

import pytest
import torch

import btr_kernels as bk

from .cases import to_numpy
from .numpy_definitions import majority, match_passage


def passage(*tokens: int) -> torch.Tensor:
    """One passage of tokens of 8 channels."""
    return torch.tensor([[[token] for token in tokens]], dtype=torch.uint8)


def slots(bits, keep, **options) -> list[int]:
    return bk.match_tokens(bits, keep, **options).slot.flatten().tolist()


# Matching


def test_closest_pair_merges_and_stands_where_its_b_stood(implementation):
    # A: 0 at position 0, 7 at 2; B: 255 at 1, 3 at 3. Distances: 0-255 8, 0-3 2, 7-255 5, 7-3 1.
    assert slots(passage(0, 255, 7, 3), 3) == [0, 1, 2, 2]
    assert slots(passage(0, 255, 7, 3), 2) == [1, 0, 1, 1]


def test_equal_distances_take_the_lowest_b_and_merge_the_lowest_a_first(implementation):
    assert slots(passage(0, 0, 0, 0, 0, 0), 5) == [0, 0, 1, 2, 3, 4]
    assert slots(passage(0, 0, 0, 0, 0, 0), 4) == [0, 0, 0, 1, 2, 3]
    # Both b at distance 1 of a = 0: the first of them.
    assert slots(passage(0, 1, 255, 2), 3) == [0, 0, 1, 2]


def test_a_round_merges_at_most_half_and_the_next_works_on_the_majority(implementation):
    # Round 1 on 5 tokens merges all of A (positions 0, 2, 4) into B: 0 and 1 into 0b1, 0xf0 into 0xf0.
    # Round 2 merges what stands first (0b1: three tokens) into the other.
    bits = passage(0b0, 0b1, 0b1, 0xF0, 0xF0)
    assert slots(bits, 2) == [0, 0, 0, 1, 1]
    assert slots(bits, 1) == [0, 0, 0, 0, 0]
    merged, sizes = bk.merge_bits(bits, bk.match_tokens(bits, 2))
    assert merged.flatten().tolist() == [0b1, 0xF0] and sizes.tolist() == [[3, 2]]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 16, 33, 65])
def test_every_keep_of_a_passage_is_reached_by_rounds(n, implementation):
    bits = torch.randint(0, 256, (1, n, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    for keep in (1, 2, n // 4 or 1, n // 2 or 1, max(n - 1, 1), n, n + 1):
        plan = bk.match_tokens(bits, keep)
        expected, left = match_passage(to_numpy(bits[0]), keep)
        assert plan.slot[0].tolist() == expected
        assert plan.lengths.tolist() == [left] == [min(keep, n)]
        assert plan.max_len == min(keep, n)


def test_passage_no_longer_than_its_keep_is_unchanged(implementation):
    bits = torch.randint(0, 256, (3, 6, 2), dtype=torch.uint8)
    plan = bk.match_tokens(bits, 4, torch.tensor([4, 0, 2]))
    assert plan.slot.tolist() == [[0, 1, 2, 3, -1, -1], [-1] * 6, [0, 1, -1, -1, -1, -1]]
    assert plan.lengths.tolist() == [4, 0, 2] and plan.max_len == 4
    merged, sizes = bk.merge_bits(bits, plan)
    assert torch.equal(merged[0], bits[0, :4]) and torch.equal(merged[2, :2], bits[2, :2])
    assert not merged[1].any() and not merged[2, 2:].any()
    assert sizes.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]


def test_padding_never_takes_part(implementation):
    bits = torch.randint(0, 256, (1, 12, 2), dtype=torch.uint8)
    for length in range(13):
        padded = bk.match_tokens(bits, 3, torch.tensor([length]))
        alone = bk.match_tokens(bits[:, :length], 3)
        assert padded.slot[0, :length].tolist() == alone.slot[0].tolist()
        assert (padded.slot[0, length:] == -1).all() and padded.lengths.tolist() == alone.lengths.tolist()


@pytest.mark.parametrize("keep", [0.001, 0.1, 1 / 3, 0.5, 0.7, 0.999, 1.0])
def test_a_fraction_keeps_its_ceiling_of_each_length(keep, implementation):
    lengths = torch.tensor([0, 1, 2, 3, 9, 10, 30])
    bits = torch.randint(0, 256, (7, 30, 1), dtype=torch.uint8)
    plan = bk.match_tokens(bits, keep, lengths)
    assert plan.lengths.tolist() == [math.ceil(keep * n) for n in lengths.tolist()]
    assert plan.max_len == math.ceil(keep * 30)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_tensor_keeps_another_number_of_each_passage(dtype, implementation):
    bits = torch.randint(0, 256, (3, 9, 1), dtype=torch.uint8)
    plan = bk.match_tokens(bits, torch.tensor([1, 5, 100], dtype=dtype))
    assert plan.lengths.tolist() == [1, 5, 9] and plan.max_len == 9


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (0, 0, 1)])
@pytest.mark.parametrize("keep", [3, 0.5])
def test_empty_batches_and_passages(shape, keep, implementation):
    bits = torch.zeros(shape, dtype=torch.uint8)
    plan = bk.match_tokens(bits, keep)
    assert plan.slot.shape == shape[:2] and plan.lengths.tolist() == [0] * shape[0]
    merged, sizes = bk.merge_bits(bits, plan)
    assert merged.shape == (shape[0], plan.max_len, shape[2]) and sizes.shape == merged.shape[:2]
    floats, _ = bk.merge_tokens(torch.zeros(*shape[:2], 7), plan)
    assert floats.shape == (shape[0], plan.max_len, 7)


# Packed passages


@pytest.mark.parametrize("keep", [1, 3, 0.5, "tensor"])
def test_packed_passages_give_what_padded_ones_give(keep, implementation):
    lengths = torch.tensor([5, 0, 17, 1, 8])
    if keep == "tensor":
        keep = torch.tensor([2, 1, 16, 4, 3])
    padded = torch.randint(0, 256, (5, 17, 3), dtype=torch.uint8)
    states = torch.randn(5, 17, 20)
    inside = torch.arange(17) < lengths[:, None]
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()

    plan = bk.match_tokens(padded, keep, lengths)
    packed_plan = bk.match_tokens(padded[inside], keep, cu_seqlens=offsets)
    assert torch.equal(packed_plan.slot, plan.slot[inside])
    assert torch.equal(packed_plan.lengths, plan.lengths)
    assert packed_plan.cu_seqlens.tolist() == [0, *plan.lengths.cumsum(0).tolist()]
    assert packed_plan.max_total == int(plan.lengths.sum())
    assert torch.equal(packed_plan.cu_seqlens_in, offsets)

    left = torch.arange(plan.max_len) < plan.lengths[:, None]
    for merge, tokens in ((bk.merge_bits, padded), (bk.merge_tokens, states)):
        merged, sizes = merge(tokens, plan)
        packed, packed_sizes = merge(tokens[inside], packed_plan)
        assert torch.equal(packed, merged[left]) and torch.equal(packed_sizes, sizes[left])
        assert not merged[~left].any() and not sizes[~left].any()


def test_no_packed_passages_at_all(implementation):
    bits, offsets = torch.zeros(0, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
    plan = bk.match_tokens(bits, 3, cu_seqlens=offsets)
    assert plan.slot.shape == (0,) and plan.lengths.shape == (0,) and plan.cu_seqlens.tolist() == [0]
    assert bk.merge_bits(bits, plan)[0].shape == (0, 2)


# Merging


def test_majority_and_ties(implementation):
    plan = bk.MergePlan(torch.zeros(1, 3, dtype=torch.int32), torch.tensor([1]), 1)
    assert bk.merge_bits(passage(0b110, 0b011, 0b010), plan)[0].item() == 0b010
    two = bk.MergePlan(torch.zeros(1, 2, dtype=torch.int32), torch.tensor([1]), 1)
    assert bk.merge_bits(passage(0b1100, 0b1010), two)[0].item() == 0b1100  # ties: the earliest token
    votes = torch.tensor([[1, 2]], dtype=torch.int32)
    merged, sizes = bk.merge_bits(passage(0b1100, 0b1010), two, votes)
    assert merged.item() == 0b1010 and sizes.item() == 3


def test_mean_is_weighted_by_sizes(implementation):
    plan = bk.MergePlan(torch.tensor([[1, 0, 1, -1]], dtype=torch.int32), torch.tensor([2]), 3)
    x = torch.tensor([[[1.0], [5.0], [4.0], [math.nan]]])
    merged, sizes = bk.merge_tokens(x, plan, torch.tensor([[1, 7, 2, 9]], dtype=torch.int32))
    assert merged.flatten().tolist() == [5.0, 3.0, 0.0] and sizes.tolist() == [[7, 3, 0]]


def test_sizes_carry_through_a_merge_of_merges(implementation):
    """Two merges with sizes carried give the mean and the votes' total of the original tokens."""
    bits = torch.randint(0, 256, (2, 16, 4), dtype=torch.uint8)
    states = torch.randn(2, 16, 8)
    first = bk.match_tokens(bits, 9)
    merged_bits, sizes = bk.merge_bits(bits, first)
    merged, same_sizes = bk.merge_tokens(states, first)
    assert torch.equal(sizes, same_sizes)
    second = bk.match_tokens(merged_bits, 4)
    twice, total = bk.merge_tokens(merged, second, sizes)
    assert total.sum(-1).tolist() == [16, 16]

    composed = bk.MergePlan(second.slot.gather(1, first.slot.long()), second.lengths, 4)
    at_once, counts = bk.merge_tokens(states, composed)
    assert torch.equal(total, counts)
    torch.testing.assert_close(twice, at_once)


def test_rounds_vote_over_the_original_tokens_each_counting_once(implementation):
    """Not over the merged ones weighted: a vote of votes may come out otherwise."""
    generator = torch.Generator().manual_seed(3)
    differ = 0
    for _ in range(20):
        bits = torch.randint(0, 256, (1, 13, 2), dtype=torch.uint8, generator=generator)
        plan = bk.match_tokens(bits, 2)
        merged, _ = bk.merge_bits(bits, plan)
        for slot in range(2):
            members = [to_numpy(bits[0, i]) for i in range(13) if plan.slot[0, i] == slot]
            assert merged[0, slot].tolist() == majority(members, [1] * len(members))
        half = bk.match_tokens(bits, 7)
        votes, _ = bk.merge_bits(bits, half)
        differ += slots(votes, 2) != plan.slot[0].tolist()
    assert differ


def test_large_sizes_do_not_overflow_the_vote(implementation):
    plan = bk.MergePlan(torch.zeros(1, 2, dtype=torch.int32), torch.tensor([1]), 1)
    sizes = torch.tensor([[2**30, 2**30 - 1]], dtype=torch.int32)
    merged, total = bk.merge_bits(passage(0b01, 0b10), plan, sizes)
    assert merged.item() == 0b01 and total.item() == 2**31 - 1


def test_results_do_not_depend_on_the_number_of_threads(implementation):
    bits = torch.randint(0, 256, (8, 65, 96), dtype=torch.uint8)
    states = torch.randn(8, 65, 96)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            plan = bk.match_tokens(bits, 0.3)
            results.append((plan.slot, *bk.merge_bits(bits, plan), *bk.merge_tokens(states, plan)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
