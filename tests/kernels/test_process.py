"""What importing costs and needs; operators in several threads and after a fork."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

import btr_kernels as bk

from .cases import OPERATORS, as_tuple, sample
from .implementations import has


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_takes_at_most_three_tenths_of_a_second_more_than_torch():
    # CPU time of the import alone, least of several runs: what other processes do hardly matters.
    code = "import torch, time; t = time.process_time(); import btr_kernels; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) <= 0.3


def test_import_brings_in_neither_triton_nor_the_compiler_nor_the_compiled_kernels():
    code = """
import torch, sys
before = set(sys.modules)
import btr_kernels
new = set(sys.modules) - before
print(sorted(m for m in new if m.split('.')[0] in ('triton', 'numpy', 'sympy', 'networkx') or m == 'torch._dynamo'))
"""
    assert python(code) == "[]"


def test_package_works_where_triton_cannot_be_imported():
    code = """
import sys
sys.modules['triton'] = None  # makes every import of it fail
import torch, btr_kernels as bk
assert bk.pack_bits(torch.ones(3)).tolist() == [7]
status = bk.backends()['triton']
print(status.available, status.reason)
"""
    assert python(code) == "False the package triton is not installed"


def _digest(result):
    return [t.double().nan_to_num(0.5).sum().item() if isinstance(t, torch.Tensor) else t for t in as_tuple(result)]


def test_threads_calling_at_once_get_the_answers_of_one(implementation):
    names = [name for name in OPERATORS if has(implementation, name)]
    calls = [(name, sample(name, tokens, 200, 7)) for name in names for tokens in (17, 40)]
    expected = [OPERATORS[name](*args) for name, args in calls]
    start, wrong = threading.Barrier(3), []

    def work(order):
        start.wait(30)
        with bk.use_backend(implementation.backend):
            for _ in range(5):
                for i in order:
                    name, args = calls[i]
                    for got, right in zip(OPERATORS[name](*args), expected[i], strict=True):
                        if not torch.equal(got.nan_to_num(0.5), right.nan_to_num(0.5)):
                            wrong.append(name)

    forward, backward = range(len(calls)), range(len(calls) - 1, -1, -1)
    threads = [threading.Thread(target=work, args=(order,)) for order in (forward, backward, forward)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def _pack_and_project(x, weight):
    return bk.unpack_matmul(bk.pack_bits(x), weight)


def _child(connection, x, weight):
    # As the workers of a DataLoader do: OpenMP, and with it all of torch, hangs in a child whose parent used threads.
    torch.set_num_threads(1)
    connection.send(_digest(_pack_and_project(x, weight)))
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_operators_work_in_a_forked_child(implementation):
    x, weight = torch.randn(64, 768), torch.randn(128, 768)
    expected = _digest(_pack_and_project(x, weight))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(theirs, x, weight))
    child.start()
    try:
        assert ours.poll(60), "the child hangs"
        assert ours.recv() == pytest.approx(expected, rel=1e-6)
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()
