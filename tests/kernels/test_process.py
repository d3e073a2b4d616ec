"""What importing costs and needs."""

from __future__ import annotations

import subprocess
import sys


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
