"""The table of cases: what it covers, the work it counts, and that it notices wrong results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import btr_kernels
from btr_kernels.bench import CASES, OPERATORS, Case, Inputs, Peer, Traffic, WrongResult
from btr_kernels.bench import cases as rows
from btr_kernels.bench.case import difference, nbytes

BY_NAME = {case.name: case for case in CASES}


def inputs_of(case: Case) -> Inputs:
    return case.make_inputs(torch.Generator().manual_seed(0))


def small(**changes) -> Case:
    return replace(rows.pack(torch.float32, 4, 16), **changes)


def test_every_operator_has_a_row_and_a_quick_row():
    functions = {name for name in btr_kernels.__all__ if hasattr(torch.ops.btr, name)}
    assert set(OPERATORS) == functions
    assert {case.operator for case in CASES if case.quick} == functions


def test_names_are_unique():
    assert len(BY_NAME) == len(CASES)


@pytest.mark.parametrize(
    ("name", "read", "written", "operations"),
    [
        ("pack_bits float32 512x768 in cache", 512 * 768 * 4, 512 * 96, 512 * 768),
        ("pack_bits bfloat16 40960x768", 40960 * 768 * 2, 40960 * 96, 40960 * 768),
        ("unpack_bits scaled 40960x768", 40960 * 96, 40960 * 768 * 4, 40960 * 768),
        ("unpack_matmul int8 M=64 768->2048", 64 * 96 + 2048 * 768, 64 * 2048 * 4, 2 * 64 * 2048 * 768),
        ("hamming_distance 2048x2048x768", 2 * 2048 * 96, 2048 * 2048 * 4, 2 * 2048 * 2048 * 768),
        ("match_tokens keep=0.5 40x200x768", 40 * 200 * 96, 40 * 201 * 4, 2 * 40 * 100 * 100 * 768),
    ],
)
def test_bytes_and_operations(name, read, written, operations):
    case = BY_NAME[name]
    assert case.bytes == Traffic(read, written)
    assert case.bytes.total == read + written
    assert case.operations == operations


SMALL = [
    rows.pack(torch.float32, 5, 24),
    rows.pack(torch.bfloat16, 5, 24),
    rows.unpack(5, 24),
    rows.binarize_norm("rms", 5, 24),
    rows.binarize_norm("layer", 5, 24),
    rows.sign_scale_forward(5, 24),
    rows.sign_scale_training(5, 24),
    rows.matmul(3, 8, 32, "plain"),
    rows.matmul(3, 8, 32, "prepared"),
    rows.matmul(3, 64, 256, "int8"),
    rows.distances(3, 5, 64),
    rows.topk(3, 20, 2, 64),
    rows.match(2, 9, 64),
    rows.merge_majority(2, 9, 64),
    rows.merge_mean(2, 9, 64),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_ours_and_peers_agree_with_the_baseline(case):
    case.verify(inputs_of(case))


def test_repeated_calls_leave_the_inputs_as_they_were():
    for case in SMALL:
        inputs = inputs_of(case)
        case.verify(inputs)
        case.verify(inputs)


def test_a_wrong_result_is_noticed():
    flipped = small(ours=lambda i: ~btr_kernels.pack_bits(i.x))
    with pytest.raises(WrongResult, match="result 0 of ours differs from the baseline by 1"):
        flipped.verify(inputs_of(flipped))


def test_a_call_that_does_nothing_is_noticed():
    idle = small(ours=lambda i: i.out)
    with pytest.raises(WrongResult, match="of ours differs"):
        idle.verify(inputs_of(idle))


def test_a_missing_result_is_noticed():
    silent = small(ours=lambda i: None)
    with pytest.raises(WrongResult, match="ours returns 0 results, the baseline 1"):
        silent.verify(inputs_of(silent))


@pytest.mark.parametrize("wrong", [lambda i: i.x[:2], lambda i: i.out.int()])
def test_a_wrong_shape_or_dtype_of_a_peer_is_noticed(wrong):
    case = small(peers={"other": Peer(wrong)})
    with pytest.raises(WrongResult, match=r"result 0 of other is torch\..*, expected torch.uint8 \(4, 2\)"):
        case.verify(inputs_of(case))


def test_a_peer_that_is_not_installed_is_left_out_and_named():
    case = small(peers={"other": Peer(lambda i: None, module="no_such_module", package="no-such-package")})
    assert set(case.contenders()) == {"ours", "baseline"}
    assert case.missing_peers() == {"other": "no-such-package is not installed"}


def test_difference():
    assert difference(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert difference(torch.tensor([0b1011], dtype=torch.uint8), torch.tensor([0b1000], dtype=torch.uint8)) == 2 / 8
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == 0.5
    assert difference(torch.tensor([float("nan")]), torch.tensor([1.0])) != 0.0


def test_nbytes_counts_a_tensor_and_its_views_once():
    x = torch.zeros(10)
    assert nbytes(Inputs(x=x, view=x[2:], other=torch.zeros(3, dtype=torch.uint8), k=5)) == 43
