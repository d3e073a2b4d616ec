"""Operators in several threads at once, on changing backends and instruction sets, and after a fork."""

from __future__ import annotations

import contextvars
import multiprocessing
import os
import threading
from contextlib import contextmanager

import pytest
import torch

import btr_kernels as bk
from btr_kernels.backends import current_backend

from .cases import OPERATORS, sample
from .implementations import has, implementations, native, running

COMPILED = [i for i in implementations() if i.backend == "cpu"]
TOKENS, D = 40, 200


@contextmanager
def torch_threads(count: int):
    """So many threads of torch, and operators that use them however small the work."""
    before, thresholds = torch.get_num_threads(), ("parallel.bytes_per_thread", "parallel.products_per_thread")
    torch.set_num_threads(count)
    for name in thresholds if COMPILED else ():
        native().set_tuning(name, 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        for name in thresholds if COMPILED else ():
            native().set_tuning(name, None)


def at_once(*works) -> None:
    """Run every function in a thread of its own, all starting together; the first failure is raised."""
    start, failures = threading.Barrier(len(works)), []

    def run(work):
        try:
            start.wait(30)
            work()
        except BaseException as failure:  # an assertion too: the thread has nobody else to tell
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    if failures:
        raise failures[0]


def calls(names, tokens: int = TOKENS) -> list:
    """For each operator arguments and what it must give for them."""
    found = []
    for name in names:
        args = sample(name, tokens, D, 7)
        found.append((OPERATORS[name], args, OPERATORS[name].expect(args)))
    return found


def checking(todo: list, repeats: int):
    """What runs the calls again and again and compares each result with the definition."""

    def work():
        for _ in range(repeats):
            for operator, args, expected in todo:
                expected.check(operator(*args))

    return work


@pytest.mark.parametrize("intra", [1, 2])
def test_threads_calling_at_once_get_the_answers_of_one(implementation, intra):
    todo = [
        (OPERATORS[name], args, OPERATORS[name](*args))
        for name in OPERATORS
        if has(implementation, name)
        for args in (sample(name, 17, D, 7), sample(name, TOKENS, D, 8))
    ]

    def work(order):
        with bk.use_backend(implementation.backend):
            for _ in range(5):
                for operator, args, expected in order:
                    for got, right in zip(operator(*args), expected, strict=True):
                        assert torch.equal(got.nan_to_num(0.5), right.nan_to_num(0.5)), operator.name

    with torch_threads(intra):
        at_once(lambda: work(todo), lambda: work(todo[::-1]), lambda: work(todo[5:] + todo[:5]))


@pytest.mark.skipif(not COMPILED, reason="the compiled kernels are not there")
def test_each_thread_has_the_backend_of_its_own_block():
    todo = calls([name for name in OPERATORS if has(COMPILED[0], name)])
    seen = {}

    def on(name):
        def work():
            with bk.use_backend(name):
                checking(todo, 2)()
                seen[name] = current_backend()

        return work

    before = current_backend()
    at_once(on("cpu"), on("reference"), on("auto"), checking(todo, 2))
    assert seen == {"cpu": "cpu", "reference": "reference", "auto": "auto"}
    assert current_backend() == before


def test_a_thread_started_in_the_context_of_a_block_keeps_its_backend():
    with bk.use_backend("reference"):
        context = contextvars.copy_context()
    found = []
    at_once(lambda: found.append(context.run(current_backend)))
    assert found == ["reference"]


@pytest.mark.skipif(len(COMPILED) < 2, reason="only one instruction set runs here")
def test_the_instruction_set_may_change_while_operators_run():
    todo = calls([name for name in OPERATORS if has(COMPILED[0], name)])
    isa, done = native().isa(), threading.Event()
    switches = []

    def switch():
        while not done.is_set():
            for implementation in COMPILED:
                native().set_isa(implementation.isa)
                switches.append(implementation.isa)

    def work():
        try:
            with bk.use_backend("cpu"):
                checking(todo, 6)()
        finally:
            done.set()

    try:
        at_once(switch, work, work)
    finally:
        native().set_isa(isa)
    assert len(switches) > 2 * len(COMPILED)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_operators_run_in_torchs_inter_op_threads(implementation):
    """They start a parallel region there, inside one that torch already counts."""

    @torch.jit.script
    def three(x: torch.Tensor, y: torch.Tensor):
        first = torch.jit.fork(torch.ops.btr.pack_bits, x)
        second = torch.jit.fork(torch.ops.btr.pack_bits, y)
        return torch.ops.btr.pack_bits(x + y), torch.jit.wait(first), torch.jit.wait(second)

    x, y = torch.randn(400, 300), torch.randn(400, 300)
    results = []
    with torch_threads(2):
        at_once(lambda: results.extend(three(x, y)))
    for got, source in zip(results, (x + y, x, y), strict=True):
        assert torch.equal(got, bk.pack_bits(source))


# --- fork: libgomp, and with it all of torch, hangs in a child that starts threads after its parent did. A child that
# sets one thread, as the workers of a DataLoader do, must get answers whatever its parent ran.


def _used_in_parent() -> tuple:
    with torch_threads(2):
        x, weight = torch.randn(256, 768), torch.randn(128, 768)
        return x, weight, *_again(x, weight)


def _again(x, weight) -> list:
    bits = bk.pack_bits(x).view(2, 128, 96)
    plan = bk.match_tokens(bits, 0.5)
    return [bk.unpack_matmul(bits, weight), *bk.merge_bits(bits, plan), bk.merge_tokens(x.view(2, 128, 768), plan)[0]]


def _child(connection, x, weight):
    torch.set_num_threads(1)
    connection.send([t.double().sum().item() for t in _again(x, weight)])
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_operators_work_in_a_forked_child(implementation):
    x, weight, *expected = _used_in_parent()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(theirs, x, weight))
    child.start()
    try:
        assert ours.poll(60), "the child hangs"
        assert ours.recv() == pytest.approx([t.double().sum().item() for t in expected], rel=1e-6)
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()


class _Merged(torch.utils.data.Dataset):
    def __init__(self, x, weight):
        self.x, self.weight = x, weight

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return _again(self.x, self.weight)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_operators_work_in_the_workers_of_a_data_loader(implementation):
    x, weight, *expected = _used_in_parent()
    loader = torch.utils.data.DataLoader(
        _Merged(x, weight), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60
    )
    count = 0
    for results in loader:
        for got, right in zip(results, expected, strict=True):
            torch.testing.assert_close(got, right)
        count += 1
    assert count == 4


@pytest.mark.skipif(not COMPILED, reason="the compiled kernels are not there")
def test_results_do_not_depend_on_the_number_of_threads():
    with running(COMPILED[-1]):
        for name in OPERATORS:
            if not has(COMPILED[-1], name) or name == "sign_scale_backward":
                continue  # a sum over tokens, added up in one part a thread
            args = sample(name, 700, 768, 3) if "matmul" not in name else sample(name, 100, 768, 3)
            with torch_threads(1):
                expected = OPERATORS[name](*args)
            for count in (2, 3):
                with torch_threads(count):
                    for got, right in zip(OPERATORS[name](*args), expected, strict=True):
                        assert torch.equal(got.nan_to_num(0.5), right.nan_to_num(0.5)), (name, count)
