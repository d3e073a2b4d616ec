"""The cases of `btr_kernels.bench` under pytest-benchmark: a group a case, a test a contender.

Nothing here asserts on time. Ours and every peer are checked against the baseline first, also under
--benchmark-disable, so a case that would measure a wrong result fails.
"""

from __future__ import annotations

import time
from functools import lru_cache

import pytest
import torch

from btr_kernels.bench import CASES
from btr_kernels.bench.case import Case, nbytes
from btr_kernels.bench.machine import cache_bytes, keep_freed_memory, thread_count
from btr_kernels.bench.measure import SEED
from btr_kernels.bench.timing import Pool, pool_size

# CPU time, like the command line tool with one thread: the machine may be busy with other things.
pytestmark = pytest.mark.benchmark(timer=time.process_time)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    keep_freed_memory()
    with thread_count(1):
        yield


# The tests of a case follow each other, so one pool at a time is enough.
@lru_cache(maxsize=1)
def checked_pool(case: Case, timed: bool) -> Pool:
    generator = torch.Generator().manual_seed(SEED)
    first = case.make_inputs(generator)
    case.verify(first)
    count = pool_size(nbytes(first), cache_bytes(), case.in_cache) if timed else 1
    return Pool([first, *(case.make_inputs(generator) for _ in range(count - 1))])


CONTENDERS = [
    pytest.param(case, name, id=f"{case.name}-{name}".replace(" ", "_"))
    for case in CASES
    for name in ("ours", "baseline", *case.peers)
]


@pytest.mark.parametrize(("case", "contender"), CONTENDERS)
def test_operator(benchmark, case: Case, contender: str) -> None:
    if contender in case.missing_peers():
        pytest.skip(case.missing_peers()[contender])
    pool = checked_pool(case, timed=not benchmark.disabled)
    run = case.contenders()[contender]
    benchmark.group = case.name
    benchmark.extra_info.update(
        contender=contender, bytes=case.bytes.total, operations=case.operations, input_sets=len(pool)
    )
    benchmark(lambda: run(pool.next()))
