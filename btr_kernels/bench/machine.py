"""What the machine can do, measured in the same run as the rows that are compared with it."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from .. import __version__, backends, current_backend
from ..env import cpu_model
from .case import Case
from .timing import SYSTEM_CLOCK

MIB = 1 << 20
#: Environment variables that keep other libraries from instructions that they would use.
PEER_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "FAISS_OPT_LEVEL",
)
#: Taken for the last-level cache where the system does not tell; larger than those of most machines.
UNKNOWN_CACHE = 64 * MIB
#: Buffers of the bandwidth limits, in last-level caches. Caches do not drop the oldest line first, so that of 4 caches
#: a part is still there in the next pass: 48 GB/s where 16 and more give 41.
BUFFER_CACHES = 16
#: Times a limit is tried; the best counts, since a limit is what is possible.
TRIES = 7
#: What a try moves at least, so that starting threads does not count; the unit that every thread moves.
PASS_BYTES, BLOCK = 128 * MIB, 4096
#: Rounds of multiply-adds in a try: milliseconds.
ROUNDS = 1_000_000


def cache_bytes() -> int:
    """Size of the last-level cache of a core."""
    sizes = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        text = (index / "size").read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": MIB}[text[-1]] if text[-1] in "KM" else int(text))
    return max(sizes, default=UNKNOWN_CACHE)


def instruction_set() -> str | None:
    """What the compiled kernels use, or None where they are not built."""
    if not backends()["cpu"].available:
        return None
    from .. import _C

    return _C.isa()


def environment(threads: Sequence[int]) -> dict[str, object]:
    """Everything about this process and machine that a figure depends on; `threads`: the counts measured."""
    backend = current_backend()
    if backend == "auto":
        backend = "auto (cpu)" if backends()["cpu"].available else "auto (reference)"
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": list(threads),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "last_level_cache_bytes": cache_bytes(),
        "backend": backend,
        "instruction_set": instruction_set(),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "peer_variables": {name: os.environ[name] for name in PEER_VARIABLES if name in os.environ},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "btr_kernels": __version__,
        **{package.replace("-", "_"): _version(package) for package in ("torch", "numpy", "faiss-cpu", "numkong")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run torch, and faiss if it is there, on this many threads. NumPy's and numkong's calls use one in any case."""
    before = torch.get_num_threads()
    _set_threads(threads)
    try:
        yield
    finally:
        _set_threads(before)


def _set_threads(threads: int) -> None:
    if find_spec("threadpoolctl") is not None:
        import threadpoolctl

        # NumPy's matmul. OpenBLAS's second thread keeps a core busy after its call, so that on two cores the threads
        # of the next contender share one for 100 ms. First, since the OpenBLAS of faiss sets OpenMP's threads too.
        threadpoolctl.threadpool_limits(1, user_api="blas")
    torch.set_num_threads(threads)
    if find_spec("faiss") is not None:
        import faiss

        faiss.omp_set_num_threads(threads)


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the next allocation; whether it does.

    By default it returns large blocks to the system, and every call that allocates its result then pays for page
    faults: baselines would look worse than they are inside a program with a caching allocator.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1))


@dataclass(frozen=True)
class Limit:
    """A measured limit: `rate` in `unit` ("B/s" or "op/s") on `threads` threads, and what was run to get it."""

    name: str
    threads: int
    rate: float
    unit: str
    how: str


class Limits:
    """The measured limits of this machine at a number of threads, each measured when first asked for.

    `seconds` is the clock: the CPU time of all threads, or wall time, as for the rows that are compared.
    Bandwidths are those of main memory, or for a case that stays in cache of a buffer as large as the case.
    """

    def __init__(self, threads: int, seconds: Callable[[], float] = SYSTEM_CLOCK.cpu):
        self.threads = threads
        self._seconds = seconds
        self._executor = ThreadPoolExecutor(threads)
        self._measured: dict[str, Limit] = {}
        self._again: dict[str, Callable[[], Limit]] = {}

    def measured(self) -> list[Limit]:
        return list(self._measured.values())

    def measure_again(self) -> None:
        """Measure every known limit once more and keep the better: a machine that was busy gave too low a limit."""
        for name, measure in self._again.items():
            self._measured[name] = max(self._measured[name], measure(), key=lambda limit: limit.rate)

    def bandwidth(self, kind: str, case: Case | None = None) -> Limit:
        """Bandwidth "read", "write" or "copy" (bytes read and written) that bounds the case, or of main memory."""
        in_cache = case is not None and case.in_cache
        size = case.bytes.total if in_cache else BUFFER_CACHES * cache_bytes()
        return self._limit(
            f"{kind}, {size / MIB:.1f} MiB in cache" if in_cache else f"{kind}, main memory",
            "B/s",
            lambda: self._bandwidth(kind, size),
        )

    def arithmetic(self) -> Limit:
        """Rate of float32 multiply-adds (2 operations each)."""
        return self._limit("multiply-adds", "op/s", self._multiply_adds)

    def of(self, case: Case) -> tuple[Limit, float]:
        """What bounds the case, and the seconds below which it then cannot come.

        A call takes at least its bytes / bandwidth and its operations / rate of multiply-adds, whichever is longer.
        The second is no law of nature: code that gets around multiply-adds (tables, popcounts) can exceed 100% of it.
        """
        bandwidth, arithmetic = self.bandwidth(case.limit, case), self.arithmetic()
        memory, compute = case.bytes.total / bandwidth.rate, case.operations / arithmetic.rate
        return (bandwidth, memory) if memory >= compute else (arithmetic, compute)

    def _limit(self, name: str, unit: str, measure: Callable[[], tuple[float, str]]) -> Limit:
        if name not in self._measured:

            def limit() -> Limit:
                rate, how = measure()
                return Limit(name, self.threads, rate, unit, how)

            self._again[name] = limit
            self._measured[name] = limit()
        return self._measured[name]

    def _best(self, run: Callable[[], object]) -> float:
        run()
        best = float("inf")
        for _ in range(TRIES):
            start = self._seconds()
            run()
            best = min(best, self._seconds() - start)
        return best

    def _on_all_threads(self, run: Callable[[int], object]) -> Callable[[], object]:
        """A call of `run` for every thread's number (the native loops release the interpreter lock)."""
        if self.threads == 1:
            return lambda: run(0)
        return lambda: list(self._executor.map(run, range(self.threads)))

    def _multiply_adds(self) -> tuple[float, str]:
        if instruction_set() is None:
            n = 1024
            a, b, out = torch.randn(n, n), torch.randn(n, n), torch.zeros(n, n)
            return 2 * n**3 / self._best(lambda: torch.matmul(a, b, out=out)), f"float32 torch.matmul of {n}x{n}"
        from .. import _C

        operations = _C.multiply_adds(1) * ROUNDS * self.threads
        seconds = self._best(self._on_all_threads(lambda _: _C.multiply_adds(ROUNDS)))
        return operations / seconds, "float32 multiply-adds in registers"

    def _bandwidth(self, kind: str, size: int) -> tuple[float, str]:
        """The best of the ways to move memory. A copy of `size` bytes reads half of them and writes the other half."""
        buffers = 2 if kind == "copy" else 1
        part = max(1, round(size / (buffers * self.threads * BLOCK))) * BLOCK
        moved = buffers * self.threads * part
        # Any value but 0: zeros can be written without being sent to memory.
        x, y = (torch.ones(self.threads * part // 4 + 16) for _ in range(2))
        if instruction_set() is None:
            ways = {"read": ("torch.sum", x.sum), "write": ("torch.fill_", lambda: x.fill_(2.0))}
            name, run = ways.get(kind, ("torch.copy_", lambda: y.copy_(x)))
            return moved / self._best(run), f"{name} of {moved / MIB:.1f} MiB"
        from .. import _C

        passes = math.ceil(PASS_BYTES / moved)
        source, destination = ((t.data_ptr() + 63) // 64 * 64 for t in (x, y))

        def all_passes(way: str) -> Callable[[], object]:
            return self._on_all_threads(
                lambda k: _C.memory_passes(way, destination + k * part, source + k * part, part, passes)
            )

        seconds = {way: self._best(all_passes(way)) for way in _C.memory_ways()[kind]}
        how = min(seconds, key=seconds.get)
        return moved * passes / seconds[how], f"{how} of {moved / MIB:.1f} MiB, best of {', '.join(seconds)}"
