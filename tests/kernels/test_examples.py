"""Small examples worked by hand, and NumPy's and faiss' own packing."""

from __future__ import annotations

import math

import faiss
import numpy as np
import pytest
import torch

import btr_kernels as bk

INT32 = torch.int32


def bits_of(*tokens: int) -> torch.Tensor:
    """One passage of tokens of 8 channels."""
    return torch.tensor([[[token] for token in tokens]], dtype=torch.uint8)


def test_channel_c_is_bit_c_from_the_least_significant(implementation):
    for c in range(20):
        x = torch.full((20,), -1.0)
        x[c] = 1.0
        assert bk.pack_bits(x).tolist() == [[1 << c % 8 if byte == c // 8 else 0 for byte in range(3)]][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_are_positive_and_nan_is_not(dtype, implementation):
    x = torch.tensor([0.0, -0.0, math.nan, -math.nan, math.inf, -math.inf, 1e-7, -1e-7]).to(dtype)
    assert bk.pack_bits(x).tolist() == [0b01010011]
    assert bk.binarize(x, "rms").tolist() == [0b01010011]
    assert bk.sign_scale(x, torch.full((8,), 3.0)).tolist() == [3, 3, -3, -3, 3, -3, 3, -3]


def test_every_float16_and_bfloat16_packs_as_its_comparison_with_zero(implementation):
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = patterns.view(dtype)
        expected = np.packbits((x.float() >= 0).numpy(), bitorder="little")
        assert bk.pack_bits(x).numpy().tolist() == expected.tolist()


def test_smallest_float32_of_both_signs(implementation):
    x = torch.tensor([1e-45, -1e-45, 1e-38, -1e-38, 3.4e38, -3.4e38])
    assert bk.pack_bits(x).tolist() == [0b010101]


def test_layout_is_that_of_numpy_and_faiss(implementation):
    x = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    packed = bk.pack_bits(torch.from_numpy(x))
    assert np.array_equal(packed.numpy(), np.packbits(x >= 0, axis=-1, bitorder="little"))
    index = faiss.IndexBinaryFlat(64)
    index.add(packed.numpy())
    distances, _ = index.search(packed.numpy()[:5], 10)
    assert np.array_equal(bk.hamming_topk(packed[:5], packed, 10).distances.numpy(), distances)


def test_pad_bits_are_ignored_where_d_is_told_and_written_as_zero(implementation):
    bits = torch.tensor([[0b11111101]], dtype=torch.uint8)
    assert bk.unpack_bits(bits, 3).tolist() == [[1, -1, 1]]
    assert bk.unpack_matmul(bits, torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[3.0]]
    assert bk.pack_bits(torch.ones(1, 3)).tolist() == [[0b111]]


def test_unpacking_scales_and_shifts(implementation):
    bits = torch.tensor([[0b01], [0b10]], dtype=torch.uint8)
    scale, bias, token_scale = torch.tensor([2.0, 3.0]), torch.tensor([0.5, 0.25]), torch.tensor([1.0, 10.0])
    y = bk.unpack_bits(bits, 2, scale, bias, token_scale=token_scale)
    assert y.tolist() == [[2.5, -2.75], [-19.5, 30.25]]


def test_binarize_magnitudes(implementation):
    x = torch.tensor([[3.0, -4.0], [1.0, 1.0]])
    bits, rms = bk.binarize(x, "rms", eps=0.0, return_magnitude=True)
    assert bits.tolist() == [[0b01], [0b11]]
    assert rms.tolist() == pytest.approx([math.sqrt(12.5), 1.0])
    bits, deviation = bk.binarize(x, "layer", eps=0.25, return_magnitude=True)
    assert bits.tolist() == [[0b01], [0b11]]
    assert deviation.tolist() == pytest.approx([math.sqrt(12.5), 0.5])


def test_layer_norm_of_infinities_has_no_positive_sign_but_above_minus_infinity(implementation):
    """x - mean is NaN where x is the infinite mean itself, and NaN counts as negative."""
    x = torch.tensor([[math.inf, 1.0, 2.0], [-math.inf, 1.0, 2.0], [math.nan, 1.0, 2.0]])
    assert bk.binarize(x, "layer").tolist() == [[0], [0b110], [0]]


def test_calibrated_scale_has_the_least_squared_error():
    x = torch.randn(64, 9, dtype=torch.float32)
    for norm in (None, "rms", "layer"):
        rho = bk.calibrate_scale([x[:10], x[10:]], norm)
        n = x if norm is None else x / bk.binarize(x, "rms", return_magnitude=True)[1][:, None]
        if norm == "layer":
            n = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
        assert torch.allclose(rho, n.abs().mean(0), atol=1e-4)
        signs = torch.where(n >= 0, 1.0, -1.0)
        errors = [(factor * rho * signs - n).square().sum() for factor in (0.99, 1.0, 1.01)]
        assert min(errors) == errors[1]


def test_calibration_reads_an_iterator_of_any_shapes_once():
    batches = [torch.full((3,), 2.0), torch.full((2, 0, 3), 9.0), torch.full((1, 2, 3), -5.0).half()]
    assert bk.calibrate_scale(iter(batches)).tolist() == [4.0, 4.0, 4.0]


def test_hamming_distance_counts_all_bits_of_the_bytes(implementation):
    a = torch.tensor([[0, 0], [255, 255], [1, 128]], dtype=torch.uint8)
    assert bk.hamming_distance(a, a).tolist() == [[0, 16, 2], [16, 0, 14], [2, 14, 0]]


def test_topk_ties_go_to_the_lowest_index(implementation):
    b = torch.tensor([[3], [1], [2], [0], [1]], dtype=torch.uint8)
    near = bk.hamming_topk(torch.tensor([[0]], dtype=torch.uint8), b, 5)
    assert near.indices.tolist() == [[3, 1, 2, 4, 0]] and near.distances.tolist() == [[0, 1, 1, 1, 2]]


def _heavy_tailed(*shape):
    return torch.randn(shape) / torch.rand(shape).clamp(min=1e-3)


def _equal_sizes(*shape):
    return torch.randn(shape).sign() * 0.3


# "int8" promises its error for Gaussian weights only: one factor a row does not fit heavy tails.
@pytest.mark.parametrize(
    "precision, limit, draw",
    [
        ("exact", 1e-6, torch.randn),
        ("exact", 1e-6, _heavy_tailed),
        ("fast", 6e-4, torch.randn),
        ("fast", 6e-4, _heavy_tailed),
        ("fast", 6e-4, _equal_sizes),
        ("int8", 1.2e-2, torch.randn),
    ],
)
def test_prepared_weights_keep_their_promised_error(precision, limit, draw, implementation):
    torch.manual_seed(0)
    weight, scale = draw(96, 384), torch.rand(384) + 0.5
    x = torch.randn(200, 384)
    prepared = bk.prepare_weight(weight, scale, precision)
    exact = (torch.where(x >= 0, 1.0, -1.0).double() * scale.double()) @ weight.double().T
    got = bk.unpack_matmul(bk.pack_bits(x), prepared).double()
    assert (got - exact).norm() / exact.norm() <= limit
    assert prepared.shape == (96, 384) and prepared.precision == precision


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1.0, 3e38])
def test_fast_sums_never_overflow(size, implementation):
    """All weights and all bits of one sign drive the 16-bit sums as far as they can go."""
    weight = torch.full((3, 200), size)
    weight[1] = 0
    weight[2] = -size
    prepared = bk.prepare_weight(weight, precision="fast")
    blocks = torch.nn.functional.pad(prepared.data.int(), (0, 0, 0, 56)).view(4, 64, 3)
    assert int(blocks.abs().sum(1).max()) < 2**15
    bits = torch.full((9, 25), 255, dtype=torch.uint8)
    got = bk.unpack_matmul(bits, prepared).double()
    expected = weight.double().sum(1).expand(9, 3)
    if size == 3e38:
        assert got.isinf()[:, [0, 2]].all()  # as float32 sums do
    else:
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-36)


def test_prepared_weight_is_a_copy_and_immutable():
    weight = torch.ones(2, 8)
    prepared = bk.prepare_weight(weight)
    weight.zero_()
    assert bk.unpack_matmul(torch.tensor([[255]], dtype=torch.uint8), prepared).tolist() == [[8.0, 8.0]]
    with pytest.raises(AttributeError):
        prepared.precision = "int8"
    assert prepared.to("cpu") is prepared and prepared.to("meta").shape == (2, 8)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_long_sums_are_as_exact_as_pytorch(tokens, prepared, implementation):
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, 50_003), torch.randn(16, 50_003)
    signs = torch.where(x >= 0, 1.0, -1.0)
    exact = signs.double() @ weight.double().T
    got = bk.unpack_matmul(bk.pack_bits(x), bk.prepare_weight(weight) if prepared else weight)
    assert (got - exact).norm() <= 2 * (signs @ weight.T - exact).norm() + 2**-23 * exact.norm()


def test_prepared_weights_without_columns(implementation):
    for precision in ("exact", "fast", "int8"):
        weight = bk.prepare_weight(torch.empty(0, 20), precision=precision)
        assert bk.unpack_matmul(bk.pack_bits(torch.randn(3, 20)), weight).shape == (3, 0)


def test_geglu_of_two_projections(implementation):
    """Channels +1, -1: a gate of 1 - 3 = -2 and of 0, times 2 and 5."""
    weight = torch.tensor([[1.0, 3.0], [2.0, 2.0], [4.0, 2.0], [4.0, -1.0]])
    got = bk.unpack_geglu(torch.tensor([[0b01]], dtype=torch.uint8), weight)
    torch.testing.assert_close(got, torch.tensor([[-0.0454023 * 2, 0.0]]), rtol=1e-5, atol=1e-7)


def test_linear_after_a_norm_before_a_residual(implementation):
    """3 and 4 over their root mean square, sqrt(12.5), times 1 and 2; products 11 and -5 of that."""
    weight, root = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), 12.5**0.5
    got = bk.token_linear(
        torch.tensor([3.0, 4.0]), weight, norm=torch.tensor([1.0, 2.0]), eps=0.0, residual=torch.tensor([1.0, 0.5])
    )
    torch.testing.assert_close(got, torch.tensor([1 + 11 / root, 0.5 - 5 / root]))


def test_gated_linear(implementation):
    """A gate of -2 and of 0, times 2 and 5, as of `test_geglu_of_two_projections`, plus 10."""
    weight = torch.tensor([[1.0, 3.0], [2.0, 2.0], [4.0, 2.0], [4.0, -1.0]])
    got = bk.token_linear(torch.tensor([[1.0, -1.0]]), weight, residual=torch.full((1, 2), 10.0), gated=True)
    torch.testing.assert_close(got, torch.tensor([[10 - 0.0454023 * 2, 10.0]]), rtol=1e-5, atol=1e-7)


def test_attention_of_two_heads(implementation):
    """Logits log 3 and 0 give 3/4 and 1/4; the second head sees its first key only; nothing to see gives 0."""
    query = torch.tensor([[[math.log(3), 1.0]], [[1.0, 1.0]]])
    keys = torch.tensor([[[1.0, 5.0], [0.0, 9.0]]]).expand(2, 2, 2)
    values = torch.tensor([[[4.0, 2.0], [8.0, 7.0]]]).expand(2, 2, 2)
    bias = torch.tensor([[[[0.0, 0.0]], [[0.0, -torch.inf]]], [[[-torch.inf] * 2]] * 2])
    got = bk.token_attention(query, keys, values, bias, head_size=1)
    torch.testing.assert_close(got, torch.tensor([[[5.0, 2.0]], [[0.0, 0.0]]]))


def test_int8_rows_of_zeros_stay_zero(implementation):
    prepared = bk.prepare_weight(torch.tensor([[0.0, 0.0], [1.0, -127.0]]), precision="int8")
    assert bk.unpack_matmul(torch.tensor([[0b11]], dtype=torch.uint8), prepared).tolist() == [[0.0, -126.0]]


def test_conjugate_and_negated_views_are_read_as_their_values(implementation):
    negated = torch.imag(torch.tensor([1 - 2j, 3 + 4j, -1 + 0.5j]).conj())
    assert negated.is_neg()
    assert bk.pack_bits(negated).tolist() == [0b001]
