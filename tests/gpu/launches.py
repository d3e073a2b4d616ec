"""What only a GPU can show: streams, CUDA graphs, a second device. Results are compared with the reference's.

`test_on_gpu.py` runs the checks under pytest; `python -m gpu.launches cuda` without it, and prints {check: {call: why
it fails, or None}}. `python -m gpu.launches cpu` prints that of the results of every configuration, in Triton's
interpreter.
"""

from __future__ import annotations

import json
import sys
import traceback
from functools import partial
from typing import NamedTuple

import torch

import btr_kernels as bk

from .rows import HALF, ROWS, operators_of

#: Clock cycles that a stream is kept busy, so that work on the wrong stream would overtake: a few milliseconds.
_BUSY = 20_000_000


class Call(NamedTuple):
    """One kind of machine code: the operator's example on a backend."""

    backend: str
    name: str
    example: int

    def __str__(self) -> str:
        return f"{self.backend}-{self.name}-{self.example}"

    def why_not(self) -> str | None:
        status = bk.backends()[self.backend]
        if not status.available:
            return status.reason
        needed = ROWS[self.name].examples()[self.example].capability
        if torch.cuda.get_device_capability() < divmod(needed, 10):
            return f"needs compute capability {needed / 10}"
        return None


CALLS = [
    Call(backend, name, i)
    for backend in ("triton", "cuda")
    for name in operators_of(backend)
    for i in range(len(ROWS[name].examples()))
]


def call(backend: str, name: str, args: tuple) -> tuple[torch.Tensor, ...]:
    with bk.use_backend(backend):
        results = getattr(torch.ops.btr, name)(*args)
    return results if isinstance(results, tuple) else (results,)


def on(device: str, name: str, example: int) -> tuple:
    """The example's arguments on a device, with random values and the same strides; plans, lengths and masks stay."""

    def moved(a):
        if not isinstance(a, torch.Tensor):
            return a
        if a.dtype in (torch.int32, torch.int64) or (a.dtype == torch.uint8 and bool(a.any())):
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
            torch.testing.assert_close(got, expected, rtol=2e-2, atol=0.1)
        elif ROWS[name].exact or got.dtype != torch.uint8:
            assert torch.equal(got, expected)
        else:  # signs of values at the mean
            assert float((got != expected).float().mean()) < 1e-3


def gives_what_the_reference_gives(backend: str, name: str, example: int, device: str = "cuda") -> None:
    args = on(device, name, example)
    assert_as_reference(name, args, call(backend, name, args))


def every_configuration_gives_it(backend: str, name: str, example: int, device: str = "cuda") -> None:
    """Whichever is the fastest on some GPU, the first guess not alone."""
    from btr_kernels.backends.triton import tuning

    args = on(device, name, example)
    chosen, number, most = tuning.run, 0, 1

    def run(kernel, configs, key, launch, device):
        nonlocal most
        most = max(most, len(configs))
        try:
            launch(**configs[min(number, len(configs) - 1)])
        except tuning.OutOfResources:  # of another GPU
            launch(**configs[0])

    tuning.run = run
    try:
        while number < most:
            assert_as_reference(name, args, call(backend, name, args))
            number += 1
    finally:
        tuning.run = chosen


def gives_the_same_every_time(backend: str, name: str, example: int):
    args = on("cuda", name, example)
    first = call(backend, name, args)
    for _ in range(3):
        assert all(map(torch.equal, call(backend, name, args), first))


def runs_on_the_current_stream(backend: str, name: str, example: int):
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


def does_not_synchronise(backend: str, name: str, example: int):
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


def can_be_captured_in_a_graph(backend: str, name: str, example: int):
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


def a_graph_can_come_first():
    """What is made once a device is not taken from a graph, whose memory holds nothing before it runs."""
    from btr_kernels.backends.triton import expand

    args = on("cuda", "unpack_matmul", 0)
    call("triton", "unpack_matmul", args)  # compiles
    expand._tables.clear()
    check_graph("unpack_matmul", 0, args, partial(call, "triton", "unpack_matmul"))
    assert not expand._tables
    assert_as_reference("unpack_matmul", args, call("triton", "unpack_matmul", args))


def values_out_of_range_stay_inside_memory():
    """Lengths, offsets and slots are not checked on a GPU; whatever they hold, nothing else is touched."""
    bits = torch.randint(0, 256, (4, 128, 96), dtype=torch.uint8, device="cuda")
    wild = torch.tensor([-5, 2**31 - 1, 0, 10**6], device="cuda")
    offsets = torch.tensor([-7, 300, 20, 10**9, 511], device="cuda")
    slot = torch.randint(-(2**31), 2**31 - 1, (512,), dtype=torch.int32, device="cuda")
    ids = torch.tensor([-5, 2**62, 3, 10**6], device="cuda")
    table = bits.view(-1, 96)
    for backend in (name for name in ("triton", "cuda") if bk.backends()[name].available):
        call(backend, "match_tokens", (bits, wild, wild, None))
        call(backend, "match_tokens", (table, wild, None, offsets))
        for name, tokens in (("merge_bits", table), ("merge_tokens", torch.randn(512, 768, device="cuda"))):
            call(backend, name, (tokens, slot, None, 200, offsets, offsets.flip(0)))
        call(backend, "expand_bits", (table[:4, :27].contiguous(), ids, table, table))
    torch.cuda.synchronize()


def host_memory_is_read_while_it_is_pinned_and_copied_if_not():
    """Memory that is given away as soon as the call returns is still that of the call."""
    scale = torch.rand(768, device="cuda")
    for backend in (name for name in ("triton", "cuda") if bk.backends()[name].available):
        # Columns of a wider matrix as well: a contiguous copy of pinned memory is not pinned.
        for pinned, width in ((True, 96), (False, 96), (True, 100)):
            values = torch.randint(0, 256, (5000, width), dtype=torch.uint8)
            expected = call("reference", "restore_bits", (scale, values[:, :96], HALF))
            held = values.pin_memory() if pinned else values.clone()
            torch.cuda._sleep(_BUSY)
            results = call(backend, "restore_bits", (scale, held[:, :96], HALF))
            del held
            torch.zeros(5000, width, dtype=torch.uint8).pin_memory()  # takes the memory if it was given back
            torch.cuda.synchronize()
            assert all(map(torch.equal, results, expected))


def runs_on_the_device_of_its_arguments(backend: str, name: str, example: int):
    args = on("cuda:1", name, example)
    with torch.cuda.device(0):
        results = call(backend, name, args)
        assert torch.cuda.current_device() == 0
    assert all(r.device == torch.device("cuda:1") for r in results)
    assert_as_reference(name, args, results)


#: Checks of every call, and those made once.
EVERY = (
    gives_what_the_reference_gives,
    gives_the_same_every_time,
    runs_on_the_current_stream,
    does_not_synchronise,
    can_be_captured_in_a_graph,
)
ONCE = (
    a_graph_can_come_first,
    values_out_of_range_stay_inside_memory,
    host_memory_is_read_while_it_is_pinned_and_copied_if_not,
)


def failure(check, *args) -> str | None:
    try:
        check(*args)
    except Exception:
        return traceback.format_exc()
    return None


def main() -> None:
    if sys.argv[1] == "cpu":
        calls = [call for call in CALLS if call.backend == "triton"]
        found = {str(call): failure(every_configuration_gives_it, *call, "cpu") for call in calls}
        report = {every_configuration_gives_it.__name__: found}
    else:
        calls = [call for call in CALLS if call.why_not() is None]
        every = EVERY if torch.cuda.device_count() < 2 else (*EVERY, runs_on_the_device_of_its_arguments)
        report = {check.__name__: {str(call): failure(check, *call) for call in calls} for check in every}
        report |= {check.__name__: {"once": failure(check)} for check in ONCE}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
