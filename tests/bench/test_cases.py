"""The table of cases: what it covers, the work it counts, and that it notices wrong results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import btr_kernels
from btr_kernels.bench import CASES, FAMILIES, OPERATORS, Case, Inputs, Peer, Target, Traffic, WrongResult
from btr_kernels.bench.case import difference, nbytes
from btr_kernels.bench.cases import bits, hamming, matmul, merging
from btr_kernels.bench.machine import thread_count
from btr_kernels.bench.measure import FRESH_SETS, input_pool

BY_NAME = {case.name: case for case in CASES}


def inputs_of(case: Case) -> Inputs:
    return case.make_inputs(torch.Generator().manual_seed(0))


def small(**changes) -> Case:
    return replace(bits.pack(torch.float32, 4, 16), **changes)


def test_every_operator_has_a_row_and_a_quick_row():
    functions = {name for name in btr_kernels.__all__ if hasattr(torch.ops.btr, name)}
    # What preparing a weight costs is a row too; it is a function over several operators.
    functions.add("prepare_weight")
    assert set(OPERATORS) == functions
    assert {case.operator for case in CASES if case.quick} == functions


def test_names_are_unique():
    assert len(BY_NAME) == len(CASES)


def test_targets_name_peers_of_their_row():
    for case in CASES:
        for target in case.targets:
            assert set(target.peers) <= set(case.peers), case.name
            assert 0 < target.value < target.stretch


#: The goals of the CPU kernels: what a row of each is called, and the target and stretch that it must carry.
GOALS = [
    ("unpack_matmul exact M=2048 768->768", (3.2, 4.0)),
    ("unpack_matmul exact M=8192 768->2048", (3.2, 4.0)),
    ("unpack_matmul exact M=64 768->2048", (2.4, 3.0)),
    ("unpack_matmul exact M=512 1024->2816", (2.4, 3.0)),
    ("unpack_matmul exact M=1 768->768 fresh tokens, weight in cache", (1.5, 2.5)),
    ("unpack_matmul exact M=1 1024->2816", (1.5, 2.5)),
    ("unpack_matmul fast M=4096 768->768", (5.5, 7.0)),
    ("unpack_matmul fast M=64 768->2048", (4.5, 6.0)),
    ("match_tokens keep=0.5 40x128x768", (9, 15)),
    ("match_tokens keep=0.5 40x256x768", (9, 15)),
    ("match_tokens keep=0.5 40x512x768", (12, 20)),
    ("hamming_distance 2048x2048x768", (2, 4)),
    ("pack_bits float32 512x768 in cache", (10, 13)),
    ("pack_bits float32 40960x768", (2.5, 3.5)),
    ("pack_bits bfloat16 40960x768", (0.85, 0.95)),
    ("unpack_bits scaled float32 512x768 in cache", (5, 8)),
    ("unpack_bits scaled float16 40960x768", (0.85, 0.95)),
    ("binarize rms with magnitude 8000x768", (0.75, 0.9)),
    ("merge_bits keep=0.5 10x128x768", (40, 100)),
]


@pytest.mark.parametrize(("name", "goal"), GOALS, ids=[name for name, _ in GOALS])
def test_every_goal_has_a_row(name, goal):
    assert goal in [(target.value, target.stretch) for target in BY_NAME[name].targets]


def test_rows_that_are_no_goal_have_no_target():
    for name in (
        "unpack_matmul exact M=1280 768->768",
        "unpack_matmul plain M=512 768->768",
        "prepare_weight fast 768->2048",
    ):
        assert BY_NAME[name].targets == ()
    assert (
        Target(3.2, 4.0, ("torch.matmul, unpacked", "numpy.matmul, unpacked", "oneDNN linear, unpacked"))
        in BY_NAME["unpack_matmul exact M=4096 1024->1024"].targets
    )


def test_operators_belong_to_one_family():
    assert sum(len({case.operator for case in cases}) for cases in FAMILIES.values()) == len(OPERATORS)


def test_fresh_tokens_share_the_weight_only():
    first, second, *rest = (pool := input_pool(matmul.matmul(1, 8, 64, "exact", fresh_tokens=True))).sets
    assert len(pool) == len(rest) + 2 == FRESH_SETS
    assert second.weight is first.weight and second.prepared is first.prepared and second.out is first.out
    assert not torch.equal(second.bits, first.bits)
    assert torch.equal(second.x, btr_kernels.unpack_bits(second.bits, 64, first.scale))


@pytest.mark.parametrize(
    ("name", "read", "written", "operations"),
    [
        ("pack_bits float32 512x768 in cache", 512 * 768 * 4, 512 * 96, 512 * 768),
        ("pack_bits bfloat16 40960x768", 40960 * 768 * 2, 40960 * 96, 40960 * 768),
        ("unpack_bits scaled float32 40960x768", 40960 * 96, 40960 * 768 * 4, 40960 * 768),
        (
            "expand_bits 216 of 768 bits 6000 fresh tokens of Zipf ids, tables in cache",
            6000 * (27 + 8 + 96 + 96),
            6000 * 96,
            6000 * 96,
        ),
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
    bits.pack(torch.float32, 5, 24),
    bits.pack(torch.float16, 5, 24),
    bits.pack(torch.bfloat16, 5, 24),
    bits.unpack(torch.float32, 5, 24),
    bits.unpack(torch.float16, 5, 24),
    bits.unpack(torch.bfloat16, 5, 24),
    bits.binarize_norm("rms", 5, 24),
    bits.binarize_norm("layer", 5, 24),
    bits.sign_scale_forward(5, 24),
    bits.sign_scale_training(5, 24),
    bits.masked("compress_bits", 5, 24, 8, vocabulary=7),
    bits.masked("expand_bits", 5, 24, 16, vocabulary=7),
    bits.masked("expand_bits", 5, 24, 8, zipf=False, vocabulary=7),
    matmul.matmul(3, 8, 32, "plain"),
    matmul.matmul(3, 8, 32, "exact"),
    matmul.matmul(1, 8, 32, "exact", fresh_tokens=True),
    matmul.matmul(3, 64, 256, "fast"),
    matmul.matmul(3, 64, 256, "int8"),
    matmul.matmul(3, 64, 256, "exact", torch.float16),
    matmul.matmul(3, 64, 256, "exact", torch.bfloat16),
    matmul.prepare(8, 32, "int8"),
    hamming.distances(3, 5, 64),
    hamming.topk(3, 20, 2, 64),
    merging.match(2, 9, 64),
    merging.merge_majority(2, 9, 64),
    merging.merge_mean(2, 9, 64),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_ours_and_peers_agree_with_the_baseline(case):
    case.verify(inputs_of(case))


@pytest.mark.parametrize("threads", [2, 3])
def test_peers_agree_on_several_threads(threads):
    with thread_count(threads):
        for case in (hamming.distances(5, 7, 64), hamming.topk(5, 20, 2, 64)):
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
