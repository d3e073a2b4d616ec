"""Merging before a passage is stored: equal vocabulary ids first, others if that is not enough."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import btr_kernels
from btr_reader.offline_merging import match_equal_ids, offline_plan

cases = st.tuples(st.integers(0, 10**6), st.sampled_from([0.1, 0.4, 0.75, 1.0]), st.sampled_from([1, 3, 50]))


def random_passages(seed: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (3, 12, 3), dtype=torch.uint8, generator=generator)
    ids = torch.randint(0, vocabulary, (3, 12), generator=generator)
    return bits, ids, torch.randint(1, 13, (3,), generator=generator)


def groups_by_definition(bits: list[list[int]], ids: list[int], keep: int) -> list[set[int]]:
    """Joins the groups of the nearest two tokens of one id that are still apart, until `keep` groups are left."""
    groups = [{token} for token in range(len(ids))]
    pairs = [(a, b) for a in range(len(ids)) for b in range(a + 1, len(ids)) if ids[a] == ids[b]]
    distance = lambda pair: sum(bin(x ^ y).count("1") for x, y in zip(bits[pair[0]], bits[pair[1]], strict=True))
    for a, b in sorted(pairs, key=distance):
        one, other = (next(group for group in groups if token in group) for token in (a, b))
        if one is not other and len(groups) > keep:
            groups.remove(other)
            one |= other
    return sorted(groups, key=min)


@given(cases)
@settings(deadline=None)
def test_equal_ids_merge_by_distance(case):
    seed, keep, vocabulary = case
    bits, ids, lengths = random_passages(seed, vocabulary)
    wanted = (lengths.double() * keep).ceil().long()
    plan = match_equal_ids(bits, ids, lengths, wanted)
    for row, length in enumerate(lengths.tolist()):
        expected = groups_by_definition(bits[row, :length].tolist(), ids[row, :length].tolist(), int(wanted[row]))
        assert plan.lengths[row] == len(expected)
        assert (plan.slot[row, length:] == -1).all()
        assert [{i for i in range(length) if plan.slot[row, i] == s} for s in range(len(expected))] == expected


@given(cases)
@settings(deadline=None)
def test_the_share_is_reached_whatever_the_ids(case):
    seed, keep, vocabulary = case
    bits, ids, lengths = random_passages(seed, vocabulary)
    plan = offline_plan(bits, ids, lengths, keep, same_id_first=True)
    by_id = match_equal_ids(bits, ids, lengths, (lengths.double() * keep).ceil().long())
    for row, length in enumerate(lengths.tolist()):
        kept = math.ceil(length * keep)
        assert plan.lengths[row] == kept
        slots = plan.slot[row, :length].tolist()
        assert set(slots) == set(range(kept))
        # Tokens that the first step joined stay together.
        for a in range(length):
            for b in range(a):
                assert by_id.slot[row, a] != by_id.slot[row, b] or slots[a] == slots[b]
    merged, sizes = btr_kernels.merge_bits(bits, plan)
    assert sizes.sum(1).tolist() == lengths.tolist()
    assert merged.shape[1] == plan.max_len


def test_different_ids_are_merged_as_before():
    bits, _, lengths = random_passages(0, 5)
    ids = torch.arange(12).expand(3, 12)
    plain = btr_kernels.match_tokens(bits, 0.5, lengths)
    first = offline_plan(bits, ids, lengths, 0.5, same_id_first=True)
    assert torch.equal(plain.slot, first.slot)
    assert torch.equal(plain.lengths, first.lengths)
