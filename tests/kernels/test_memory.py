"""What the projection allocates beside its result: no stored table, less than 2 MB a thread."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import btr_kernels as bk

pytestmark = [
    pytest.mark.skipif(not bk.backends()["cpu"].available, reason="the reference unpacks its tokens"),
    pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of memory is reset through /proc"),
]

PEAKS = """
import torch
import btr_kernels as bk


def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


torch.set_num_threads(1)
for m, n, d in ((9000, 300, 768), (20000, 64, 2816), (16, 4096, 4096)):
    for precision in (None, "exact", "fast", "int8"):
        for call, rows in ((bk.unpack_matmul, n), (bk.unpack_geglu, 2 * n)):
            bits, weight, out = torch.zeros(m, d // 8, dtype=torch.uint8), torch.ones(rows, d), torch.ones(m, n)
            weight = weight if precision is None else bk.prepare_weight(weight, None, precision)
            call(bits[:1], weight, out=out[:1])
            call(bits[:700], weight, out=out[:700])  # every page of code that the call needs
            open("/proc/self/clear_refs", "w").write("5")
            before = peak()
            call(bits, weight, out=out)
            print(m, n, d, precision, call.__name__, peak() - before, sep=",")
"""


def test_a_call_needs_less_than_2_mb():
    # Large blocks go back to the system when they are freed, so that each call counts afresh.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", PEAKS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.split()
    kilobytes = [int(row.split(",")[-1]) for row in rows]
    assert max(kilobytes) <= 2048, rows
    assert max(kilobytes) >= 256, "nothing was counted"
