"""The comparison is neither blind nor nervous: kernels that are a little wrong fail, other summation orders pass."""

from __future__ import annotations

import sys

import pytest
import torch

import btr_kernels as bk
from btr_kernels import reference

from .cases import OPERATORS, as_tuple, sample

SIZES = tuple((tokens, d) for d in (9, 64, 384) for tokens in (3, 17))


def flip_last_bit(results):
    results[0].view(-1)[-1] ^= 128


def off_by_one(results):
    results[0].view(-1)[-1] += 1


def largest_element_wrong_in_its_ninth_bit(results):
    flat = results[0].view(-1)
    flat[flat.float().abs().nan_to_num(0).argmax()] *= 1 + 2.0**-8


def rounded_to_bfloat16(results):
    results[0].copy_(results[0].bfloat16())


def rounded_twice(results):
    """Through float16 on the way to bfloat16 or float32, as a careless epilogue does."""
    results[0].copy_(results[0].half())


def off_by_two_units_in_the_last_place(results):
    results[0].mul_(1 + 2 * torch.finfo(results[0].dtype).eps)


def second_result_off_by_one(results):
    results[1].view(-1)[-1] += 1


MUTATIONS = [
    ("pack_bits", flip_last_bit),
    ("binarize", flip_last_bit),
    ("compress_bits", flip_last_bit),
    ("expand_bits", flip_last_bit),
    ("unpack_bits", largest_element_wrong_in_its_ninth_bit),
    ("unpack_bits", off_by_two_units_in_the_last_place),
    ("sign_scale", largest_element_wrong_in_its_ninth_bit),
    ("sign_scale_backward", largest_element_wrong_in_its_ninth_bit),
    ("unpack_matmul", largest_element_wrong_in_its_ninth_bit),
    ("unpack_matmul", rounded_to_bfloat16),
    ("unpack_matmul", rounded_twice),
    ("unpack_matmul_prepared", largest_element_wrong_in_its_ninth_bit),
    ("unpack_geglu", largest_element_wrong_in_its_ninth_bit),
    ("token_linear", largest_element_wrong_in_its_ninth_bit),
    ("token_linear", rounded_to_bfloat16),
    ("token_attention", largest_element_wrong_in_its_ninth_bit),
    ("merge_tokens", largest_element_wrong_in_its_ninth_bit),
    ("merge_tokens", rounded_to_bfloat16),
    ("merge_tokens_backward", largest_element_wrong_in_its_ninth_bit),
    ("hamming_distance", off_by_one),
    ("hamming_topk", second_result_off_by_one),
    ("match_tokens", off_by_one),
    ("merge_bits", flip_last_bit),
    ("merge_bits", second_result_off_by_one),
    ("merge_tokens", second_result_off_by_one),
]


def caught(name, mutation) -> tuple[int, int]:
    """Among samples whose result the mutation changes: how many fail the comparison, and how many there are."""
    failed = changed = 0
    for tokens, d in SIZES:
        for seed in range(3):
            args = sample(name, tokens, d, seed)
            expected = OPERATORS[name].expect(args)
            results = [t.clone() for t in OPERATORS[name](*args)]
            expected.check(tuple(results))
            if not all(r.numel() for r in results):
                continue
            before = [r.clone() for r in results]
            mutation(results)
            if all(torch.equal(r, b) for r, b in zip(results, before, strict=True)):
                continue
            changed += 1
            try:
                expected.check(tuple(results))
            except AssertionError:
                failed += 1
    return failed, changed


@pytest.mark.parametrize("name, mutation", MUTATIONS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_wrong_result_is_caught(name, mutation):
    failed, changed = caught(name, mutation)
    assert changed >= 3
    # Low-precision results may hide an error of their own size; no mutation may hide in most samples.
    assert failed >= 0.5 * changed, f"only {failed} of {changed} wrong results were caught"


def _transposed_bits(bits, weight, scale, bias, token_scale, out_dtype):
    """Most significant bit first: the classic mistake."""
    reverse = torch.tensor([int(f"{v:08b}"[::-1], 2) for v in range(256)], dtype=torch.uint8)
    return reference.unpack_matmul(reverse[bits.long()], weight, scale, bias, token_scale, out_dtype)


def _scale_forgotten(bits, weight, scale, bias, token_scale, out_dtype):
    return reference.unpack_matmul(bits, weight, None, bias, token_scale, out_dtype)


def _weight_in_bfloat16(bits, weight, scale, bias, token_scale, out_dtype):
    return reference.unpack_matmul(bits, weight.bfloat16(), scale, bias, token_scale, out_dtype)


def _last_channel_dropped(bits, weight, scale, bias, token_scale, out_dtype):
    shorter = weight.clone()
    shorter[:, -1] = 0
    return reference.unpack_matmul(bits, shorter, scale, bias, token_scale, out_dtype)


@pytest.mark.parametrize("kernel", [_transposed_bits, _scale_forgotten, _weight_in_bfloat16, _last_channel_dropped])
def test_a_wrong_kernel_of_a_backend_is_caught(kernel, monkeypatch):
    def fill(*args):
        args[-1].copy_(kernel(*args[:-1]))

    monkeypatch.setattr(sys.modules["btr_kernels.backends"], "resolve", lambda operator, device: fill)
    failed = 0
    for seed in range(6):
        args = list(sample("unpack_matmul", 17, 129, seed))
        args[1], args[2], args[5] = torch.randn(9, 129), torch.rand(129) + 0.5, torch.float32
        args[3] = None
        expected = OPERATORS["unpack_matmul"].expect(tuple(args))
        try:
            expected.check(as_tuple(torch.ops.btr.unpack_matmul(*args)))
        except AssertionError:
            failed += 1
    assert failed == 6


@pytest.mark.parametrize("chunk", [1, 3, 8, 64, 1024])
def test_any_order_of_a_float32_sum_passes(chunk):
    for tokens, d in ((17, 129), (16, 1024)):
        bits = bk.pack_bits(torch.randn(tokens, d))
        weight, scale = torch.randn(9, d), torch.rand(d)
        x = reference.signs(bits, d) * scale
        total = torch.zeros(tokens, 9)
        for c in range(0, d, chunk):
            total += x[:, c : c + chunk] @ weight[:, c : c + chunk].T
        OPERATORS["unpack_matmul"].expect((bits, weight, scale, None, None, torch.float32)).check((total,))
