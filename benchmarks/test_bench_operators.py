"""The cases of `btr_kernels.bench` under pytest-benchmark: a group a case, a test a contender.

Nothing here asserts on time. Ours and every peer are checked against the baseline first, also under
--benchmark-disable, so a case that would measure a wrong result fails.
"""

from __future__ import annotations

import time
from functools import lru_cache

import pytest

from btr_kernels.bench import CASES
from btr_kernels.bench.case import Case
from btr_kernels.bench.machine import keep_freed_memory, thread_count
from btr_kernels.bench.measure import input_pool

# CPU time, like the command line tool with one thread: the machine may be busy with other things.
pytestmark = pytest.mark.benchmark(timer=time.process_time)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    keep_freed_memory()
    with thread_count(1):
        yield


# The tests of a case follow each other, so one pool at a time is enough.
pool_of = lru_cache(maxsize=1)(input_pool)


CONTENDERS = [
    pytest.param(case, name, id=f"{case.name}-{name}".replace(" ", "_"))
    for case in CASES
    for name in ("ours", "baseline", *case.peers)
]


@pytest.mark.parametrize(("case", "contender"), CONTENDERS)
def test_operator(benchmark, case: Case, contender: str) -> None:
    if contender in case.missing_peers():
        pytest.skip(case.missing_peers()[contender])
    pool = pool_of(case, timed=not benchmark.disabled)
    run = case.contenders()[contender]
    benchmark.group = case.name
    benchmark.extra_info.update(
        contender=contender, bytes=case.bytes.total, operations=case.operations, input_sets=len(pool)
    )
    benchmark(lambda: run(pool.next()))
