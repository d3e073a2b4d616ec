"""What the machine can do, measured in the same run as the rows that are compared with it."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
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
#: Taken for the last-level cache where the system does not tell; larger than those of most machines.
UNKNOWN_CACHE = 64 * MIB
#: Buffers of the bandwidth limits, in last-level caches: what stays in cache is then a small part.
BUFFER_CACHES = 4
#: Times a limit is tried; the best counts, since a limit is what is possible.
TRIES = 7


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


def environment(threads: int) -> dict[str, object]:
    """Everything about this process and machine that a figure depends on."""
    backend = current_backend()
    if backend == "auto":
        backend = "auto (cpu)" if backends()["cpu"].available else "auto (reference)"
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "last_level_cache_bytes": cache_bytes(),
        "backend": backend,
        "instruction_set": instruction_set(),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
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
    """A measured limit: `rate` in `unit` ("B/s" or "op/s"), and what was run to get it."""

    name: str
    rate: float
    unit: str
    how: str


class Limits:
    """The measured limits of this machine at a number of threads, each measured when first asked for.

    `seconds` is the clock: the CPU time of all threads, or wall time, as for the rows that are compared.
    Bandwidths are those of main memory, or for a case that stays in cache of a buffer as large as the case.
    """

    def __init__(self, threads: int, seconds: Callable[[], float] = SYSTEM_CLOCK.cpu, matmul_size: int = 2048):
        self.threads = threads
        self.matmul_size = matmul_size
        self._seconds = seconds
        self._executor = ThreadPoolExecutor(threads)
        self._measured: dict[str, Limit] = {}

    def measured(self) -> list[Limit]:
        return list(self._measured.values())

    def bandwidth(self, kind: str, case: Case | None = None) -> Limit:
        """Bandwidth "read", "write" or "copy" (bytes read and written) that bounds the case, or of main memory."""
        in_cache = case is not None and case.in_cache
        size = case.bytes.total if in_cache else BUFFER_CACHES * cache_bytes()
        name = f"{kind}, {size / MIB:.1f} MiB in cache" if in_cache else f"{kind}, main memory"
        if name not in self._measured:
            rate, how = self._bandwidth(kind, size)
            self._measured[name] = Limit(name, rate, "B/s", how)
        return self._measured[name]

    def matmul(self) -> Limit:
        """Rate of float32 multiply-adds (2 operations each) in a large torch.matmul."""
        if "matmul" not in self._measured:
            n = self.matmul_size
            a, b, out = torch.randn(n, n), torch.randn(n, n), torch.zeros(n, n)
            seconds = self._best(lambda: torch.matmul(a, b, out=out))
            how = f"float32 torch.matmul of {n}x{n} matrices"
            self._measured["matmul"] = Limit("matmul", 2 * n**3 / seconds, "op/s", how)
        return self._measured["matmul"]

    def of(self, case: Case) -> tuple[Limit, float]:
        """What bounds the case, and the seconds below which it then cannot come.

        A call takes at least its bytes / bandwidth and its operations / matmul rate, whichever is longer. The second
        is no law of nature: code that gets around multiply-adds (tables, popcounts) can exceed 100% of it.
        """
        bandwidth, matmul = self.bandwidth(case.limit, case), self.matmul()
        memory, compute = case.bytes.total / bandwidth.rate, case.operations / matmul.rate
        return (bandwidth, memory) if memory >= compute else (matmul, compute)

    def _best(self, run: Callable[[], object]) -> float:
        run()
        best = float("inf")
        for _ in range(TRIES):
            start = self._seconds()
            run()
            best = min(best, self._seconds() - start)
        return best

    def _bandwidth(self, kind: str, size: int) -> tuple[float, str]:
        words = max(size // (8 * self.threads), 1) * 2 * self.threads
        if kind == "read":
            x = torch.ones(words)
            low, high = x.chunk(2)
            moved, ways = x.nbytes, {"torch.sum": x.sum, "torch.dot": lambda: torch.dot(low, high)}
        elif kind == "write":
            # Any value but 0: zeros can be written without being sent to memory.
            x = torch.ones(words)
            moved = x.nbytes
            ways = {"torch.fill_": lambda: x.fill_(2.0), "memset": self._in_slices(ctypes.memset, x, 1)}
        else:
            x, y = torch.ones(words // 2), torch.ones(words // 2)
            moved = 2 * x.nbytes
            ways = {"torch.copy_": lambda: y.copy_(x), "memmove": self._in_slices(ctypes.memmove, y, x)}
        seconds = {name: self._best(run) for name, run in ways.items()}
        how = min(seconds, key=seconds.get)
        return moved / seconds[how], f"{how} of {moved / MIB:.1f} MiB, best of {', '.join(ways)}"

    def _in_slices(
        self, function: Callable, destination: torch.Tensor, source: torch.Tensor | int
    ) -> Callable[[], object]:
        """A C library call split over the threads (ctypes releases the interpreter lock)."""
        count = self.threads
        step = destination.nbytes // count
        addresses = [destination.data_ptr() + step * k for k in range(count)]
        if isinstance(source, torch.Tensor):
            sources = [source.data_ptr() + step * k for k in range(count)]
        else:
            sources = [source] * count
        if count == 1:
            return lambda: function(addresses[0], sources[0], step)
        return lambda: list(self._executor.map(function, addresses, sources, [step] * count))
