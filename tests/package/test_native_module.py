"""The module `btr_kernels._C`: instruction sets, build information, kernels for NumPy arrays and raw pointers."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

_C = pytest.importorskip("btr_kernels._C")


@pytest.fixture(params=_C.isas())
def isa(request):
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


def expected_bits(x):
    return np.packbits(x if x.dtype == bool else x >= 0, axis=-1, bitorder="little")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bool])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5, 64), (4, 100), (0, 8)])
def test_pack_bits_of_arrays(dtype, shape, isa):
    x = np.random.default_rng(0).standard_normal(shape)
    x = x > 0 if dtype is bool else x.astype(dtype)
    assert np.array_equal(_C.pack_bits(x), expected_bits(x))


def test_arrays_may_have_any_strides(isa):
    x = np.random.default_rng(0).standard_normal((6, 80)).astype(np.float32)[::2, ::-2]
    assert np.array_equal(_C.pack_bits(x), expected_bits(x))


def test_unpack_bits_restores_scaled_signs(isa):
    x = np.random.default_rng(0).standard_normal((3, 5, 70)).astype(np.float32)
    scale = np.linspace(0.5, 2, 70, dtype=np.float32)
    bits = _C.pack_bits(x)
    assert np.array_equal(_C.unpack_bits(bits, 70), np.where(x >= 0, 1, -1).astype(np.float32))
    assert np.array_equal(_C.unpack_bits(bits, 70, scale), np.where(x >= 0, scale, -scale))


def test_unpack_matmul_and_hamming_distance(isa):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((20, 70)).astype(np.float32), rng.standard_normal((9, 70)).astype(np.float32)
    bits, signs = _C.pack_bits(x), np.where(x >= 0, 1.0, -1.0)
    np.testing.assert_allclose(_C.unpack_matmul(bits, weight), signs @ weight.T, rtol=1e-4, atol=1e-4)
    assert np.array_equal(_C.hamming_distance(bits[:4], bits), (signs[:4, None] != signs[None]).sum(-1))


def test_pack_bits_on_addresses(isa):
    x = np.random.default_rng(0).standard_normal((4, 33)).astype(np.float32)
    out = (ctypes.c_uint8 * 20)()
    _C.pack_bits_raw(x.ctypes.data, "float32", 4, 33, ctypes.addressof(out))
    assert bytes(out) == expected_bits(x).tobytes()


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: _C.pack_bits(np.zeros((2, 3))), TypeError, "x: "),
        (lambda: _C.pack_bits(np.zeros((2, 3), ">f4")), TypeError, "x: "),
        (lambda: _C.pack_bits(np.zeros((2, 3), ">f2")), TypeError, "x: "),
        (lambda: _C.pack_bits(np.zeros((2, 0), np.float32)), ValueError, "x: "),
        (lambda: _C.unpack_bits(np.zeros((2, 3), np.int32), 24), TypeError, "bits: "),
        (lambda: _C.unpack_bits(np.zeros((2, 3), np.uint8), 25), ValueError, "bits: "),
        (lambda: _C.unpack_bits(np.zeros((2, 3), np.uint8), 24, np.zeros(5, np.float32)), ValueError, "scale: "),
        (lambda: _C.unpack_matmul(np.zeros((2, 3), np.uint8), np.zeros((4, 99), np.float32)), ValueError, "weight: "),
        (lambda: _C.hamming_distance(np.zeros((2, 3), np.uint8), np.zeros((2, 4), np.uint8)), ValueError, "b: "),
        (lambda: _C.pack_bits_raw(0, "float64", 1, 1, 0), ValueError, "dtype: "),
        (lambda: _C.pack_bits_raw(0, "float32", -1, 1, 0), ValueError, "rows"),
        (lambda: _C.set_isa("sse9"), ValueError, "name: "),
    ],
)
def test_wrong_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call()


def test_build_information_is_complete():
    info = _C.build_info()
    assert set(_C.isas()) <= set(info["isas"])
    assert info["compiler"]
    assert tuple(map(int, info["torch"].split(".")[:2])) >= (2, 11)


@pytest.mark.parametrize("name", _C.isas())
def test_environment_variable_forces_the_instruction_set(name):
    code = "import btr_kernels; from btr_kernels import _C; print(_C.isa())"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "BTR_ISA": name}, capture_output=True, text=True
    )
    assert run.stdout.strip() == name, run.stderr


def test_environment_variable_with_an_unknown_instruction_set_is_an_error():
    code = "import torch, btr_kernels; btr_kernels.pack_bits(torch.ones(8))"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "BTR_ISA": "x"}, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "ValueError: BTR_ISA: expected an instruction set that runs here" in run.stderr


def test_memory_loops_move_what_they_say():
    n = 4096
    for kind, ways in _C.memory_ways().items():
        for way in ways:
            buffers = np.zeros((2, 2 * n + 64), np.uint8)
            source, destination = (row[-row.ctypes.data % 64 :] for row in buffers)
            source[:] = 7
            _C.memory_passes(way, destination.ctypes.data, source.ctypes.data, n, 2)
            assert np.all(destination[:n] == {"read": 0, "write": 1, "copy": 7}[kind]), way
            assert np.all(destination[n:] == 0) and np.all(source == 7), way


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("nothing", 0, 0, 0, 1), "memory_ways"), (("memset", 0, 0, 100, 1), "4096"), (("memset", 8, 0, 0, 1), "64")],
)
def test_memory_loops_refuse_what_they_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.memory_passes(*arguments)


def test_multiply_adds_count_operations():
    assert _C.multiply_adds(20) == 20 * _C.multiply_adds(1) > 0
