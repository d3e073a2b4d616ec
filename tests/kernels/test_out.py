"""Writing into a given tensor: contiguous or not, the same values as without, and nothing beside them."""

from __future__ import annotations

import pytest
import torch

import btr_kernels as bk

from .cases import OPERATORS, WITH_OUT, sample
from .comparison import assert_exact
from .picks import restride


def _project(function, args, out):
    return function(*args[:4], token_scale=args[4], out=out)


def _project_prepared(function, args, out):
    weight = bk.PreparedWeight(*args[1:4], torch.float32)
    return function(args[0], weight, bias=args[4], token_scale=args[5], out=out)


def _linear(args, out):
    x, weight, norm, eps, residual, gated = args
    return bk.token_linear(x, weight, norm=norm, eps=eps, residual=residual, gated=gated, out=out)


PUBLIC_OUT = {
    "pack_bits": lambda args, out: bk.pack_bits(*args, out=out),
    "unpack_bits": lambda args, out: bk.unpack_bits(*args[:4], token_scale=args[4], out=out),
    "compress_bits": lambda args, out: bk.compress_bits(*args, out=out),
    "expand_bits": lambda args, out: bk.expand_bits(*args, out=out),
    "unpack_matmul": lambda args, out: _project(bk.unpack_matmul, args, out),
    "unpack_matmul_prepared": lambda args, out: _project_prepared(bk.unpack_matmul, args, out),
    "unpack_geglu": lambda args, out: _project(bk.unpack_geglu, args, out),
    "unpack_geglu_prepared": lambda args, out: _project_prepared(bk.unpack_geglu, args, out),
    "token_linear": _linear,
    "hamming_distance": lambda args, out: bk.hamming_distance(*args, out=out),
}


@pytest.mark.parametrize("kind", ["contiguous", "transposed", "sliced", "step"])
@pytest.mark.parametrize("name", WITH_OUT)
def test_out_holds_the_result_and_is_returned(name, kind, implementation):
    for seed in range(4):
        args = sample(name, 3, 20, seed)
        (expected,) = OPERATORS[name](*args)
        out = restride(torch.full_like(expected, 7), kind)
        returned = PUBLIC_OUT[name](args, out)
        assert returned is out
        assert_exact(name, out, expected)


def test_memory_between_the_elements_of_out_is_left_alone(implementation):
    room = torch.full((6, 40), 7.0)
    bits = bk.pack_bits(torch.randn(3, 20))
    out = room[::2, ::2]
    bk.unpack_bits(bits, 20, out=out)
    assert_exact("out", out, bk.unpack_bits(bits, 20))
    assert (room[1::2] == 7).all() and (room[:, 1::2] == 7).all()


@pytest.mark.parametrize("tokens, n", [(0, 4), (4, 0), (0, 0)])
def test_empty_out_is_accepted(tokens, n, implementation):
    bits = torch.zeros(tokens, 3, dtype=torch.uint8)
    product = torch.empty(tokens, n)
    assert bk.unpack_matmul(bits, torch.ones(n, 20), out=product) is product
    distances = torch.empty(tokens, n, dtype=torch.int32)
    assert bk.hamming_distance(bits, torch.zeros(n, 3, dtype=torch.uint8), out=distances) is distances


def test_out_may_be_part_of_what_is_read(implementation):
    """x and out share memory only if they have one dtype, as bool and uint8 do when viewed."""
    memory = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0], dtype=torch.uint8)
    bk.pack_bits(memory.view(torch.bool), out=memory[:1])
    assert memory[0] == 0b1101


def test_expanded_out_is_refused():
    bits = bk.pack_bits(torch.randn(3, 20))
    with pytest.raises(RuntimeError, match="single memory location"):
        bk.unpack_bits(bits, 20, out=torch.empty(1, 20).expand(3, 20))


def test_dtype_comes_from_out():
    bits = bk.pack_bits(torch.randn(3, 20))
    out = torch.empty(3, 20, dtype=torch.bfloat16)
    assert bk.unpack_bits(bits, 20, out=out).dtype == torch.bfloat16
    product = torch.empty(3, 6, dtype=torch.float16)
    assert bk.unpack_matmul(bits, torch.randn(6, 20), out=product).dtype == torch.float16
    with pytest.raises(TypeError, match="^out: expected dtype torch.bfloat16"):
        bk.unpack_matmul(bits, torch.randn(6, 20), out_dtype=torch.bfloat16, out=product)


def test_out_that_overlaps_what_is_read_gets_the_result(implementation):
    """Rows are written one after the other, and the next still reads its scale."""
    memory = torch.zeros(3, 4)
    memory[0] = torch.tensor([2.0, 3.0, 4.0, 5.0])
    bits, scale = bk.pack_bits(torch.ones(3, 4)), memory[0].clone()
    expected = bk.unpack_bits(bits, 4, scale, scale)
    bk.unpack_bits(bits, 4, memory[0], scale, out=memory)
    assert_exact("restored", memory, expected)


def test_writing_into_a_tensor_that_a_gradient_needs_is_noticed(implementation):
    bits, weight = bk.pack_bits(torch.randn(4, 20)), torch.randn(2, 20, requires_grad=True)
    product = bk.unpack_matmul(bits, weight).sum()
    bk.pack_bits(torch.randn(4, 20), out=bits)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_tensors_can_be_written(implementation):
    with torch.inference_mode():
        x, out = torch.randn(4, 20), torch.zeros(4, 3, dtype=torch.uint8)
        assert_exact("bits", bk.pack_bits(x, out=out), bk.pack_bits(x))
