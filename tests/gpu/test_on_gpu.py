"""What only a GPU can show: streams, CUDA graphs, a second device. Results are compared with the reference's."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import btr_kernels as bk

from .rows import ROWS, operators_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

#: Clock cycles that a stream is kept busy, so that work on the wrong stream would overtake: a few milliseconds.
_BUSY = 20_000_000

#: (backend, operator, number of the example) for every kind of machine code.
CALLS = [
    pytest.param(backend, name, i, id=f"{backend}-{name}-{i}")
    for backend in ("triton", "cuda")
    for name in operators_of(backend)
    for i in range(len(ROWS[name].examples()))
]
every_call = pytest.mark.parametrize(("backend", "name", "example"), CALLS)


@pytest.fixture(autouse=True)
def available(request):
    chosen = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    status = bk.backends()[chosen.get("backend", "triton")]
    if not status.available:
        pytest.skip(status.reason)
    if "example" in chosen:
        needed = ROWS[chosen["name"]].examples()[chosen["example"]].capability
        if torch.cuda.get_device_capability() < divmod(needed, 10):
            pytest.skip(f"needs compute capability {needed / 10}")


def call(backend: str, name: str, args: tuple) -> tuple[torch.Tensor, ...]:
    with bk.use_backend(backend):
        results = getattr(torch.ops.btr, name)(*args)
    return results if isinstance(results, tuple) else (results,)


def on(device: str, name: str, example: int) -> tuple:
    """The example's arguments on a device, with random values and the same strides; plans and lengths stay."""

    def moved(a):
        if not isinstance(a, torch.Tensor):
            return a
        if a.dtype in (torch.int32, torch.int64):
            return a.to(device)
        if a.dtype == torch.float8_e4m3fn:
            values = torch.randn(a.shape, device=device).to(a.dtype)
        elif a.is_floating_point():
            values = torch.randn(a.shape, device=device)
        else:
            low, high = {torch.bool: (0, 2), torch.uint8: (0, 256), torch.int8: (-127, 128)}.get(a.dtype, (-511, 512))
            values = torch.randint(low, high, a.shape, device=device)
        return torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=device).copy_(values)

    return tuple(map(moved, ROWS[name].examples()[example].args))


def replace(old: tuple, new: tuple) -> None:
    for a, b in zip(old, new, strict=True):
        if isinstance(a, torch.Tensor):
            a.copy_(b)


def assert_as_reference(name: str, args: tuple, results: tuple) -> None:
    for got, expected in zip(results, call("reference", name, args), strict=True):
        if got.is_floating_point() and not ROWS[name].exact:
            torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
        elif ROWS[name].exact or got.dtype != torch.uint8:
            assert torch.equal(got, expected)
        else:  # signs of values at the mean
            assert float((got != expected).float().mean()) < 1e-3


@every_call
def test_runs_on_the_current_stream(backend, name, example):
    args = on("cuda", name, example)
    call(backend, name, args)  # compiles
    changed = on("cuda", name, example)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(_BUSY)
        replace(args, changed)
        results = call(backend, name, args)
    stream.synchronize()
    assert_as_reference(name, changed, results)


@every_call
def test_does_not_synchronise(backend, name, example):
    args = on("cuda", name, example)
    call(backend, name, args)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(_BUSY)
        call(backend, name, args)
        assert not torch.cuda.current_stream().query(), "the call returned only after the stream was idle"
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_call
def test_can_be_captured_in_a_graph(backend, name, example):
    args = on("cuda", name, example)
    call(backend, name, args)
    check_graph(name, example, args, partial(call, backend, name))


def check_graph(name: str, example: int, args: tuple, run) -> None:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(args)
    for _ in range(2):
        changed = on("cuda", name, example)
        replace(args, changed)
        for r in results:
            r.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_as_reference(name, changed, results)


def test_a_graph_can_come_first():
    """What is made once a device is not taken from a graph, whose memory holds nothing before it runs."""
    from btr_kernels.backends.triton import expand

    args = on("cuda", "unpack_matmul", 0)
    call("triton", "unpack_matmul", args)  # compiles
    expand._tables.clear()
    check_graph("unpack_matmul", 0, args, partial(call, "triton", "unpack_matmul"))
    assert not expand._tables
    assert_as_reference("unpack_matmul", args, call("triton", "unpack_matmul", args))


def test_values_out_of_range_stay_inside_memory():
    """Lengths, offsets and slots are not checked on a GPU; whatever they hold, nothing else is touched."""
    bits = torch.randint(0, 256, (4, 128, 96), dtype=torch.uint8, device="cuda")
    wild = torch.tensor([-5, 2**31 - 1, 0, 10**6], device="cuda")
    call("triton", "match_tokens", (bits, wild, wild, None))
    offsets = torch.tensor([-7, 300, 20, 10**9, 511], device="cuda")
    call("triton", "match_tokens", (bits.view(-1, 96), wild, None, offsets))
    slot = torch.randint(-(2**31), 2**31 - 1, (512,), dtype=torch.int32, device="cuda")
    for name, tokens in (("merge_bits", bits.view(-1, 96)), ("merge_tokens", torch.randn(512, 768, device="cuda"))):
        call("triton", name, (tokens, slot, None, 200, offsets, offsets.flip(0)))
    torch.cuda.synchronize()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_call
def test_runs_on_the_device_of_its_arguments(backend, name, example):
    args = on("cuda:1", name, example)
    with torch.cuda.device(0):
        results = call(backend, name, args)
        assert torch.cuda.current_device() == 0
    assert all(r.device == torch.device("cuda:1") for r in results)
    assert_as_reference(name, args, results)
