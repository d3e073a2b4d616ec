"""The torch.nn modules."""

import pickle

import pytest
import torch
from torch import nn

from btr_kernels import binarize, pack_bits, reference
from btr_kernels.nn import BinaryLinear, CalibratedBinarizer


@pytest.mark.parametrize("norm", [None, "rms", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_decoded_tokens_equal_the_training_form(norm, bias):
    binarizer = CalibratedBinarizer(33, norm=norm, bias=bias)
    x = torch.randn(2, 5, 33)
    binarizer.calibrate([x])
    if bias:
        nn.init.normal_(binarizer.bias)
    torch.testing.assert_close(binarizer.decode(binarizer.encode(x)), binarizer(x))
    assert torch.equal(binarizer.encode(x), binarize(x, norm))


def test_calibration_gives_the_scale_of_least_squared_error():
    x = torch.randn(1000, 16) * torch.linspace(0.5, 3, 16)
    binarizer = CalibratedBinarizer(16)
    binarizer.calibrate([x[:300], x[300:]])

    def error(scale):
        return (x - torch.where(x >= 0, scale, -scale)).square().sum(0)

    best = error(binarizer.scale.detach())
    for factor in (0.99, 1.01):
        assert (error(binarizer.scale.detach() * factor) > best).all()


def test_binarizer_learns_scale_and_bias_and_passes_gradients_on():
    binarizer = CalibratedBinarizer(8, norm="rms", grad=("tanh", 2.0), bias=True)
    x = torch.randn(4, 8, requires_grad=True)
    binarizer(x).square().sum().backward()
    assert binarizer.scale.grad.abs().sum() > 0
    assert binarizer.bias.grad.abs().sum() > 0
    assert x.grad.abs().sum() > 0


def expected(layer, bits):
    return reference.unpack_matmul(bits, layer.weight, layer.scale, layer.bias, None, torch.float32)


@pytest.mark.parametrize(("precision", "tolerance"), [("exact", 1e-5), ("fast", 1e-3), ("int8", 1.2e-2)])
def test_eval_uses_the_prepared_weight_within_its_precision(precision, tolerance):
    layer = BinaryLinear(256, 64, precision=precision).eval()
    nn.init.uniform_(layer.scale)
    layer.eval()
    bits = pack_bits(torch.randn(50, 256))
    with torch.no_grad():
        y, y0 = layer(bits), expected(layer, bits)
    assert layer._prepared.precision == precision
    assert (y - y0).norm() / (y0 - layer.bias).norm() <= tolerance


def test_gradients_are_recorded_in_train_and_in_eval_mode():
    layer = BinaryLinear(16, 4)
    bits = pack_bits(torch.randn(3, 16))
    for mode in (True, False):
        layer.train(mode)
        layer.zero_grad()
        layer(bits).sum().backward()
        assert layer.weight.grad.abs().sum() > 0
        assert layer.scale.grad.abs().sum() > 0


@torch.no_grad()
def test_loading_and_converting_refresh_the_prepared_weight():
    layer, other = BinaryLinear(16, 4).eval(), BinaryLinear(16, 4)
    bits = pack_bits(torch.randn(3, 16))
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(bits), expected(other, bits))
    layer.to(torch.bfloat16)
    assert layer(bits).dtype == torch.bfloat16
    assert layer.train()._prepared is None


@torch.no_grad()
def test_from_linear_computes_what_the_linear_layer_computes_on_restored_tokens():
    linear = nn.Linear(24, 7)
    scale, x = torch.rand(24), torch.randn(5, 24)
    layer = BinaryLinear.from_linear(linear, scale)
    torch.testing.assert_close(layer(pack_bits(x)), linear(torch.where(x >= 0, scale, -scale)))
    assert layer.weight is linear.weight


def test_compiles_without_graph_breaks():
    layer = BinaryLinear(16, 4).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    bits = pack_bits(torch.randn(3, 16))
    with torch.no_grad():
        torch.testing.assert_close(compiled(bits), layer(bits))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="norm"):
        CalibratedBinarizer(8, norm="batch")
    with pytest.raises(ValueError, match="d: expected"):
        CalibratedBinarizer(0)
    with pytest.raises(ValueError, match="precision"):
        BinaryLinear(8, 8, precision="int4").eval()


def test_a_layer_can_be_pickled():
    layer = BinaryLinear(20, 6).eval()
    bits = pack_bits(torch.randn(3, 20))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(bits), layer(bits))


def test_memory_that_is_yet_to_be_filled_is_not_prepared():
    with torch.device("meta"):
        layer = BinaryLinear(20, 6).eval()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        layer.to_empty(device="cpu")
    finally:
        torch.use_deterministic_algorithms(deterministic)
    source = BinaryLinear(20, 6).eval()
    layer.load_state_dict(source.state_dict())
    bits = pack_bits(torch.randn(3, 20))
    assert torch.equal(layer(bits), source(bits))


def test_an_unknown_precision_is_refused_at_once():
    with pytest.raises(ValueError, match="^precision: expected"):
        BinaryLinear(20, 6, precision="int3")
