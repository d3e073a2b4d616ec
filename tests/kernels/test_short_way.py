"""Public functions go past the dispatcher (`ops/direct.py`) only where nothing would notice: who wants to see the
operator sees it, and results, errors and the choice of a backend are those of `torch.ops.btr.*`."""

from __future__ import annotations

import sys
from typing import ClassVar

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import btr_kernels as bk
from btr_kernels.ops import direct

from .cases import OPERATORS, PUBLIC, WITH_OUT, as_tuple, sample
from .comparison import assert_exact

X = torch.randn(2, 5, 20)
SCALE = torch.rand(20)
BITS = bk.pack_bits(X)
short = direct.calls


@pytest.fixture
def dispatched(monkeypatch):
    """Names of the operators that go through the dispatcher, in the order of their calls."""
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    with Recorder():
        yield seen


def is_short(*args) -> bool:
    return direct.key(args) is not None


# What it gives


@pytest.mark.parametrize("name", OPERATORS)
def test_results_are_those_of_the_operator_the_first_time_and_later(name, implementation):
    for seed in range(4):
        args = sample(name, 3, 20, seed)
        expected = OPERATORS[name](*args)
        for _ in range(2):
            for i, (got, want) in enumerate(zip(as_tuple(getattr(short, name)(*args)), expected, strict=True)):
                assert_exact(f"{name} result {i}", got, want)


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize("strides", ["contiguous", "transposed"])
def test_out_is_written_and_nothing_else(name, strides, implementation):
    args = sample(name, 3, 20)
    (expected,) = OPERATORS[name](*args)
    for _ in range(2):
        out = torch.zeros_like(expected)
        if strides == "transposed":
            out = torch.zeros(expected.shape[::-1], dtype=expected.dtype).permute(*reversed(range(expected.dim())))
        assert getattr(short, f"{name}_out")(*args, out) is None
        assert_exact(name, out, expected)


def test_every_public_function_takes_it():
    assert all(callable(getattr(short, name)) for name in PUBLIC)
    assert is_short(X) and is_short(BITS, 20, None, SCALE, 1e-6, "ste", True, torch.float32)
    assert is_short(torch.nn.Parameter(SCALE, requires_grad=False))


def test_backend_is_resolved_in_every_call(monkeypatch):
    module, asked = sys.modules["btr_kernels.backends"], []
    resolve = module.resolve

    def spy(operator, device):
        asked.append((module.current_backend(), operator))
        return resolve(operator, device)

    monkeypatch.setattr(module, "resolve", spy)
    bk.pack_bits(X)
    with bk.use_backend("reference"):
        bk.pack_bits(X)
    assert asked == [("auto", "pack_bits"), ("reference", "pack_bits")]


def test_strides_are_not_remembered():
    x = torch.randn(20, 20)
    for view in (x, x.T, x, x.T.contiguous(), x[:, torch.arange(19, -1, -1)]):
        assert_exact("bits", bk.pack_bits(view), torch.ops.btr.pack_bits(view))


def test_wrong_arguments_are_refused_after_right_ones():
    plan = bk.match_tokens(BITS, 3)
    for _ in range(2):
        bk.unpack_bits(BITS, 20, SCALE)
        bk.merge_bits(BITS, plan)
        with pytest.raises(ValueError, match="^scale: expected shape"):
            bk.unpack_bits(BITS, 20, SCALE[:-1])
        with pytest.raises(TypeError, match="^scale: expected dtype"):
            bk.unpack_bits(BITS, 20, SCALE.double())
        with pytest.raises(ValueError, match="^bits: expected 4 bytes"):
            bk.unpack_bits(BITS, 25)
        with pytest.raises(ValueError, match="^out: expected shape"):
            bk.pack_bits(X, out=torch.zeros(2, 5, 2, dtype=torch.uint8))
        with pytest.raises(ValueError, match="^plan.slot: expected values from -1 to 2"):
            bk.merge_bits(BITS, plan._replace(slot=plan.slot + 9))


def test_few_shapes_are_remembered(monkeypatch):
    monkeypatch.setattr(sys.modules["btr_kernels.ops.define"], "_REMEMBERED", 3)
    for _ in range(2):
        for d in range(1, 12):
            x = torch.randn(2, d)
            assert_exact("bits", bk.pack_bits(x), torch.ops.btr.pack_bits(x))


def test_out_counts_as_written_as_often_as_through_the_operator():
    versions = []
    for call in (short.pack_bits_out, torch.ops.btr.pack_bits_out):
        out = torch.zeros_like(BITS)
        before = out._version
        call(X, out)
        versions.append(out._version - before)
    assert versions[0] == versions[1] == 1


# Tensors whose values are not what lies in memory


@pytest.mark.parametrize("contiguous", [True, False])
def test_lazily_negated_tensors(contiguous, implementation):
    x = torch._neg_view(X) if contiguous else torch.randn(3, 20, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert_exact("bits", bk.pack_bits(x), bk.pack_bits(x.resolve_neg()))
    scale = torch._neg_view(SCALE)
    assert_exact("floats", bk.unpack_bits(BITS, 20, scale), bk.unpack_bits(BITS, 20, -SCALE))
    out = torch._neg_view(torch.zeros(2, 5, 20))
    assert not is_short(BITS, 20, SCALE, None, None, torch.float32, out)


def test_zeros_without_memory(implementation):
    assert_exact("bits", bk.pack_bits(torch._efficientzerotensor((3, 8))), torch.full((3, 1), 255, dtype=torch.uint8))


# Who wants to see the operator


def test_dispatch_modes(dispatched):
    bk.pack_bits(X)
    bk.pack_bits(X, out=torch.zeros_like(BITS))
    assert [name for name in dispatched if name.startswith("btr::")] == ["btr::pack_bits", "btr::pack_bits_out"]


def test_fake_tensors():
    with FakeTensorMode() as mode:
        assert isinstance(bk.pack_bits(torch.empty(3, 20)), FakeTensor)
        assert not is_short(X)
    assert isinstance(bk.pack_bits(mode.from_tensor(X)), FakeTensor)


def test_function_modes():
    seen = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Recorder():
        bk.pack_bits(X)
        assert not is_short(X)
    assert any("pack_bits" in name for name in seen)
    assert is_short(X)


class Subclass(torch.Tensor):
    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(str(function))
        return super().__torch_function__(function, types, args, kwargs)


def test_subclasses():
    Subclass.seen.clear()
    assert isinstance(bk.pack_bits(X.as_subclass(Subclass)), Subclass)
    assert any("pack_bits" in name for name in Subclass.seen)
    assert not is_short(BITS, 20, SCALE.as_subclass(Subclass))


def test_gradients():
    scale = SCALE.clone().requires_grad_()
    assert bk.unpack_bits(BITS, 20, scale).requires_grad and not is_short(scale)
    assert bk.unpack_bits(BITS, 20, torch.nn.Parameter(SCALE)).requires_grad
    with torch.no_grad():
        assert is_short(scale) and not bk.unpack_bits(BITS, 20, scale).requires_grad
    with torch.inference_mode():
        assert is_short(scale) and bk.unpack_bits(BITS, 20, scale).is_inference()


def test_forward_mode_gradients():
    with forward_ad.dual_level():
        assert not is_short(SCALE)
        with pytest.raises(NotImplementedError, match="^forward-mode derivatives"):
            is_short(forward_ad.make_dual(SCALE, torch.ones(20)))
    assert is_short(SCALE)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap, torch.func.functionalize])
def test_function_transforms(transform):
    inside = []

    def f(x):
        inside.append(is_short(x))
        return x.sum()

    transform(f)(SCALE)
    assert inside == [False] and is_short(SCALE)


def test_tracers():
    graph = make_fx(lambda x: bk.pack_bits(x))(X).graph
    assert torch.ops.btr.pack_bits.default in [node.target for node in graph.nodes]
    traced = torch.jit.trace(lambda x: bk.pack_bits(x), (X,), check_trace=False)
    assert "btr::pack_bits" in str(traced.graph)


def test_compiler_sees_operators_and_no_way_past_them():
    targets = []

    def backend(module, inputs):
        targets.extend(node.target for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    def f(x, scale, out):
        bits = bk.pack_bits(x, out=out)
        return bk.unpack_bits(bits, 20, scale)

    torch.compile(f, backend=backend, fullgraph=True)(X, SCALE, torch.zeros_like(BITS))
    assert torch.ops.btr.pack_bits_out.default in targets and torch.ops.btr.unpack_bits.default in targets


def test_profilers():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as modern:
        bk.pack_bits(X)
    with torch.autograd.profiler.profile() as old:
        bk.pack_bits(X)
    for profile in (modern, old):
        assert "btr::pack_bits" in [event.key for event in profile.key_averages()]
    assert is_short(X)


def test_other_devices_and_numbers_that_stand_for_symbols():
    assert bk.pack_bits(X.to("meta")).device.type == "meta" and not is_short(X.to("meta"))

    class Whole(int):
        pass

    assert not is_short(BITS, Whole(20))
