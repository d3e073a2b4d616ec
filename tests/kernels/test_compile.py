"""Every public function under torch.compile(fullgraph=True) gives what it gives without, and keeps its backend."""

from __future__ import annotations

import sys

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend

import btr_kernels as bk

from .cases import OPERATORS, PUBLIC, as_tuple, sample
from .comparison import assert_exact


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def assert_same(got, expected):
    got, expected = as_tuple(got), as_tuple(expected)
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype
            assert_exact(f"result {i}", a, b)
        else:
            assert a == b


def compiled(function, backend="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


@pytest.mark.parametrize("name", PUBLIC)
def test_compiled_call_equals_the_plain_one(name):
    public = OPERATORS[name].public
    for seed, (tokens, d) in enumerate(((3, 9), (16, 128))):
        args = sample(name, tokens, d, seed)
        assert_same(compiled(public)(*args), public(*args))


def _bits(tokens, d=24):
    return bk.pack_bits(torch.randn(tokens, d))


def _match(bits):
    """Match, then merge bits and floats, with a float to keep: sizes follow from the shape."""
    plan = bk.match_tokens(bits, 0.5)
    return *plan[:3], *bk.merge_bits(bits, plan), *bk.merge_tokens(bits.float(), plan)


def _match_packed(bits, cu_seqlens):
    plan = bk.match_tokens(bits, 2, cu_seqlens=cu_seqlens)
    return plan.slot, plan.lengths, plan.cu_seqlens, *bk.merge_bits(bits, plan)


DYNAMIC = {
    "pack_bits": (bk.pack_bits, lambda t: (torch.randn(t, 24),)),
    "unpack_bits": (lambda b, s: bk.unpack_bits(b, 24, s), lambda t: (_bits(t), torch.rand(24))),
    "binarize": (lambda x: bk.binarize(x, "layer", return_magnitude=True), lambda t: (torch.randn(t, 24),)),
    "sign_scale": (lambda x: bk.sign_scale(x, x.new_ones(24), "rms"), lambda t: (torch.randn(t, 24),)),
    "unpack_matmul": (bk.unpack_matmul, lambda t: (_bits(t), torch.ones(6, 24))),
    "hamming_distance": (bk.hamming_distance, lambda t: (_bits(t), _bits(7))),
    "hamming_topk": (lambda a, b: bk.hamming_topk(a, b, 3), lambda t: (_bits(4), _bits(t))),
    "match_and_merge": (_match, lambda t: (_bits(t)[None],)),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_one_graph_serves_all_numbers_of_tokens(name):
    function, arguments = DYNAMIC[name]
    counter = CompileCounterWithBackend("aot_eager")
    dynamic = compiled(function, backend=counter, dynamic=True)
    dynamic(*arguments(5))
    first = counter.frame_count
    for tokens in (5, 8, 13):
        args = arguments(tokens)
        assert_same(dynamic(*args), function(*args))
    assert counter.frame_count == first


@pytest.mark.parametrize("keep", [3, 0.4, torch.tensor([2, 9])], ids=["int", "float", "tensor"])
def test_keep_of_every_kind_compiles(keep):
    bits = _bits(18).reshape(2, 9, -1)
    lengths = torch.tensor([9, 4])
    match = lambda b, n: bk.match_tokens(b, keep, n)[:3]
    assert_same(compiled(match)(bits, lengths), match(bits, lengths))


def test_packed_passages_compile_with_rows_bounded_without_reading_tensors():
    bits, cu_seqlens = _bits(9), torch.tensor([0, 5, 5, 9], dtype=torch.int32)
    slot, lengths, offsets, merged, sizes = compiled(_match_packed)(bits, cu_seqlens)
    plain = _match_packed(bits, cu_seqlens)
    assert_same((slot, lengths, offsets), plain[:3])
    total = int(offsets[-1])
    assert merged.shape[0] >= total
    assert_same((merged[:total], sizes[:total]), plain[3:])
    assert not merged[total:].any() and not sizes[total:].any()


@pytest.mark.parametrize("precision", ["exact", "fast", "int8"])
def test_prepared_weight_compiles_as_argument_and_as_constant(precision):
    bits, weight = _bits(4), bk.prepare_weight(torch.randn(6, 24), torch.rand(24), precision)
    expected = bk.unpack_matmul(bits, weight)
    assert_same(compiled(bk.unpack_matmul)(bits, weight), expected)
    assert_same(compiled(lambda b: bk.unpack_matmul(b, weight))(bits), expected)


def test_calibrate_scale_compiles():
    batches = [torch.randn(4, 24), torch.randn(2, 24)]
    assert_same(compiled(lambda a, b: bk.calibrate_scale([a, b], "rms"))(*batches), bk.calibrate_scale(batches, "rms"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_out_is_written_in_a_compiled_function(backend):
    def write(x, bits, weight, packed, product):
        bk.pack_bits(x + 1, out=packed)
        bk.unpack_matmul(bits, weight, out=product)
        return product * 2

    args = (torch.randn(4, 24), _bits(4), torch.randn(6, 24))
    plain = (torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(6, 4).T)
    written = tuple(torch.zeros_like(t) for t in plain)
    assert_same(compiled(write, backend)(*args, *written), write(*args, *plain))
    assert_same(written, plain)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_training_step_compiles_with_its_gradients(backend):
    weight, scale = torch.randn(6, 24, requires_grad=True), torch.rand(24, requires_grad=True)
    x = torch.randn(4, 24, requires_grad=True)

    def step(x, scale, weight):
        y = bk.sign_scale(x * 2, scale, "rms", grad=("tanh", 2.0))
        product = bk.unpack_matmul(bk.pack_bits(x.detach()), weight, scale)
        return (y @ weight.T).square().sum() + product.square().sum()

    plain = torch.autograd.grad(step(x, scale, weight), (x, scale, weight))
    fused = torch.autograd.grad(compiled(step, backend)(x, scale, weight), (x, scale, weight))
    for got, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


# use_backend


@pytest.fixture
def chosen(monkeypatch):
    """The backends that operators asked for, in order."""
    module = sys.modules["btr_kernels.backends"]
    names, resolve = [], module.resolve

    def spy(operator, device):
        names.append(bk.current_backend())
        return resolve(operator, device)

    monkeypatch.setattr(module, "resolve", spy)
    return names


def test_backend_around_a_compiled_call_holds_at_run_time(chosen):
    pack = compiled(bk.pack_bits)
    x = torch.randn(3, 9)
    pack(x)
    with bk.use_backend("reference"):
        pack(x)
        with bk.use_backend("auto"):
            pack(x)
        pack(x)
    pack(x)
    assert chosen == ["auto", "reference", "auto", "reference", "auto"]


READY = bk.use_backend("reference")


def _with_block(x):
    with bk.use_backend("reference"):
        inside = bk.pack_bits(x)
    return inside, bk.pack_bits(x + 1)


def _ready_made_block(x):
    with READY:
        inside = bk.pack_bits(x)
    return inside, bk.pack_bits(x + 1)


@bk.use_backend("reference")
def _decorated_inner(x):
    return bk.pack_bits(x)


def _decorated(x):
    return _decorated_inner(x), bk.pack_bits(x + 1)


def _entered_by_hand(x):
    READY.__enter__()
    inside = bk.pack_bits(x)
    READY.__exit__(None, None, None)
    return inside, bk.pack_bits(x + 1)


@pytest.mark.parametrize("function", [_with_block, _ready_made_block, _decorated, _entered_by_hand])
class TestBackendChosenInsideACompiledFunction:
    def test_one_whole_graph_is_refused(self, function, chosen):
        with pytest.raises(Unsupported):
            compiled(function)(torch.randn(3, 9))
        assert chosen == []
        assert bk.current_backend() == "auto"

    def test_with_graph_breaks_it_holds_within_the_block_only(self, function, chosen):
        split = torch.compile(function, backend="aot_eager")
        for _ in range(2):
            split(torch.randn(3, 9))
            assert chosen == ["reference", "auto"]
            chosen.clear()
        assert bk.current_backend() == "auto"
