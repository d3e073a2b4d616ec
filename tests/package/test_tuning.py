"""The thresholds that choose between kernels: `btr_kernels.tuning`, `_C.set_tuning` and the variable BTR_TUNING."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import btr_kernels as btr
from btr_kernels.backends import native
from btr_kernels.tuning import thresholds, use_thresholds

if native.load()[0] is None:
    pytest.skip(native.load()[1], allow_module_level=True)

_C = native.load()[0]
NEVER = 2**60
LIST = Path(__file__).parents[2] / "csrc/core/tuning.inl"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


def product(tokens=20, d=200, n=40):
    torch.manual_seed(0)
    bits, weight = btr.pack_bits(torch.randn(tokens, d)), torch.randn(n, d)
    return bits, weight


def test_every_line_of_the_list_is_a_threshold():
    names = re.findall(r"^BTR_THRESHOLD\((\w+), (\w+),", LIST.read_text(), re.MULTILINE)
    assert list(thresholds()) == [f"{family}.{name}" for family, name in names]
    for row in thresholds().values():
        assert row.default >= row.least >= 0
        assert row.selects


# The least and the greatest value of each threshold run different kernels: the order of float sums shows which. Sums of
# integers are exact, and so is what is streamed. Tables of four channels add up in the order of the kernel for few
# tokens, so those of five are taken to tell the two apart.
@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize(
    ("name", "precision", "differ"),
    [
        ("matmul.dot_max_tokens", None, True),
        ("matmul.sum_max_tokens", "exact", True),
        ("matmul.sum_max_tokens_integer", "fast", False),
        ("matmul.sum_max_tokens_integer", "int8", False),
        ("matmul.wide_tables_tokens", None, True),
        ("matmul.wide_tables_tokens", "exact", True),
        ("matmul.wide_tables_tokens", "fast", False),
        ("matmul.streaming_bytes", "exact", False),
    ],
)
def test_a_threshold_selects_another_kernel_with_the_same_results(isa, name, precision, differ):
    bits, weight = product(n=64)
    if precision is not None:
        weight = btr.prepare_weight(weight, None, precision)
    with btr.use_backend("reference"):
        expected = btr.unpack_matmul(bits, weight)
    before = _C.isa()
    _C.set_isa(isa)
    try:
        results = []
        for value in (thresholds()[name].least, NEVER):
            wide = {"matmul.wide_tables_tokens": 0} if name.endswith("max_tokens") else {}
            with use_thresholds({**wide, name: value}):
                results.append(btr.unpack_matmul(bits, weight))
    finally:
        _C.set_isa(before)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)
    assert not differ or not torch.equal(*results), "both settings ran one kernel"


@pytest.mark.parametrize(
    ("name", "value"),
    [("matmul.block_tokens", 1), ("matmul.block_tokens", 7), ("matmul.block_tokens", NEVER)]
    + [(f"parallel.{unit}_per_thread", value) for unit in ("bytes", "products") for value in (1, NEVER)],
)
def test_how_work_is_split_changes_no_bit(name, value):
    bits, weight = product(tokens=50)
    expected = btr.unpack_matmul(bits, weight), btr.hamming_distance(bits, bits), btr.unpack_bits(bits, 200)
    with use_thresholds({name: value}):
        results = btr.unpack_matmul(bits, weight), btr.hamming_distance(bits, bits), btr.unpack_bits(bits, 200)
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)


@pytest.mark.parametrize("isa", _C.isas())
def test_streaming_changes_no_bit(isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for d in (64, 100):
            x, scale = torch.randn(9, d), torch.rand(d)
            bits = btr.pack_bits(x)
            results = []
            for size in (0, NEVER):
                with use_thresholds({"bits.streaming_bytes": size}):
                    results.append(torch.stack((btr.unpack_bits(bits, d, scale), btr.sign_scale(x, scale))))
            assert torch.equal(*results)
    finally:
        _C.set_isa(before)


def test_overrides_end_with_the_block_also_after_an_error():
    before = thresholds()
    with pytest.raises(ZeroDivisionError), use_thresholds({"matmul.block_tokens": 3}):
        assert thresholds()["matmul.block_tokens"].value == 3
        with use_thresholds({"matmul.block_tokens": 4}):
            assert thresholds()["matmul.block_tokens"].value == 4
        assert thresholds()["matmul.block_tokens"].value == 3
        raise ZeroDivisionError
    assert thresholds() == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", 1, r"name: expected a threshold \(.*matmul\.block_tokens.*\), got 'x'"),
        ("matmul.block_tokens", 0, r"value: expected an integer from 1 to 2\^60 for matmul\.block_tokens, got '0'"),
        ("matmul.block_tokens", NEVER + 1, "got '1152921504606846977'"),
    ],
)
def test_wrong_values_are_named_and_change_nothing(name, value, message):
    before = thresholds()
    with pytest.raises(ValueError, match=message), use_thresholds({name: value}):
        pass
    assert thresholds() == before


def test_environment_variable_overrides_some():
    code = "from btr_kernels.tuning import thresholds\nfor n, row in thresholds().items(): print(n, row.value)"
    done = python(code, BTR_TUNING="matmul.dot_max_tokens=8,bits.streaming_bytes=1048576")
    values = dict(line.split() for line in done.stdout.splitlines())
    assert values.pop("matmul.dot_max_tokens") == "8"
    assert values.pop("bits.streaming_bytes") == "1048576"
    assert values == {name: str(row.default) for name, row in thresholds().items() if name in values}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x=1", "expected a threshold"),
        ("matmul.block_tokens", "got ''"),
        ("matmul.block_tokens=", "got ''"),
        ("matmul.block_tokens=1.5", "got '1.5'"),
        ("matmul.block_tokens=-1", "got '-1'"),
        ("matmul.block_tokens=99999999999999999999", "got '99999999999999999999'"),
        ("matmul.block_tokens=2,,", "expected a threshold"),
    ],
)
def test_environment_variable_that_cannot_be_read_is_a_value_error(text, named):
    done = python("import torch, btr_kernels as btr; btr.pack_bits(torch.ones(8))", BTR_TUNING=text)
    assert done.returncode == 1
    assert "ValueError: BTR_TUNING: " in done.stderr
    assert named in done.stderr
