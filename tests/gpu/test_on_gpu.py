"""What only a GPU can show: streams, CUDA graphs, a second device. Results are compared with the reference's."""

from __future__ import annotations

import pytest
import torch

import btr_kernels as bk

from .rows import ROWS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

#: Clock cycles that a stream is kept busy, so that work on the wrong stream would overtake: a few milliseconds.
_BUSY = 20_000_000


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    status = bk.backends()[request.param]
    if not status.available:
        pytest.skip(status.reason)
    return request.param


def call(backend: str, name: str, args: tuple) -> tuple[torch.Tensor, ...]:
    with bk.use_backend(backend):
        results = getattr(torch.ops.btr, name)(*args)
    return results if isinstance(results, tuple) else (results,)


def on(device: str, name: str) -> tuple:
    """Random arguments shaped as the operator's last example."""
    args = []
    for a in ROWS[name].examples()[-1]:
        if isinstance(a, torch.Tensor):
            if a.is_floating_point():
                a = torch.randn(a.shape, device=device).to(a.dtype)
            else:
                a = torch.randint(0, 2 if a.dtype == torch.bool else 256, a.shape, device=device).to(a.dtype)
        args.append(a)
    return tuple(args)


def assert_as_reference(name: str, args: tuple, results: tuple) -> None:
    for got, expected in zip(results, call("reference", name, args), strict=True):
        assert torch.equal(got, expected) if ROWS[name].exact else torch.allclose(got, expected, 1e-2, 1e-2)


@pytest.mark.parametrize("name", ROWS)
def test_runs_on_the_current_stream(backend, name):
    args = on("cuda", name)
    call(backend, name, args)  # compiles
    changed = on("cuda", name)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(_BUSY)
        for old, new in zip(args, changed, strict=True):
            if isinstance(old, torch.Tensor):
                old.copy_(new)
        results = call(backend, name, args)
    stream.synchronize()
    assert_as_reference(name, changed, results)


@pytest.mark.parametrize("name", ROWS)
def test_does_not_synchronise(backend, name):
    args = on("cuda", name)
    call(backend, name, args)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(_BUSY)
        call(backend, name, args)
        assert not torch.cuda.current_stream().query(), "the call returned only after the stream was idle"
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ROWS)
def test_can_be_captured_in_a_graph(backend, name):
    args = on("cuda", name)
    call(backend, name, args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(backend, name, args)
    for _ in range(2):
        changed = on("cuda", name)
        for old, new in zip(args, changed, strict=True):
            if isinstance(old, torch.Tensor):
                old.copy_(new)
        for r in results:
            r.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_as_reference(name, changed, results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ROWS)
def test_runs_on_the_device_of_its_arguments(backend, name):
    args = on("cuda:1", name)
    with torch.cuda.device(0):
        results = call(backend, name, args)
        assert torch.cuda.current_device() == 0
    assert all(r.device == torch.device("cuda:1") for r in results)
    assert_as_reference(name, args, results)
