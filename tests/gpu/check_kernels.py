"""Worker: runs the kernels of one implementation on sampled arguments and compares the results.

`python -m gpu.check_kernels triton|cuda DEVICE` or `python -m gpu.check_kernels emulated LIBRARY`, of all operators and
channels of `rows.py` or of those given; another --seed gives other values. Prints
{operator: {"failures": {d: message}, "dtypes": [name]}} with d as text, "huge" for more than 2^31 elements, and the
names of the operator's cases.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable, Iterable

import numpy as np
import torch
from kernels.cases import OPERATORS, as_tuple
from kernels.comparison import assert_exact
from kernels.picks import SPECIAL, STRIDES, Picks, restride

import btr_kernels as bk

from .rows import CHANNELS, ROWS, SEEDS, TOKENS, operators_of

Run = Callable[[str, tuple], tuple]


class WildPicks(Picks):
    """Random arguments with special values and strides."""

    special = True
    float8 = True

    def floats(self, shape, dtype=None, *, special=True):
        values = super().floats(shape, torch.float64)
        if special:
            flat = values.reshape(-1)
            chosen = torch.from_numpy(self.random.random(flat.numel()) < 0.05)
            flat[chosen] = torch.from_numpy(self.random.choice(SPECIAL, int(chosen.sum())))
        return self.laid_out(values.to(dtype or self.choice((torch.float32, torch.float16, torch.bfloat16))))

    def laid_out(self, tensor):
        return tensor if tensor.dtype == torch.float64 else restride(tensor, self.choice(STRIDES))


def moved(value, device: str):
    """The same tensor with the same strides and storage offset on a device."""
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage().to(device=device)
    return value.new_empty(0, device=device).set_(storage, value.storage_offset(), value.size(), value.stride())


def on_backend(backend: str, device: str) -> Run:
    def run(name: str, args: tuple) -> tuple:
        with bk.use_backend(backend):
            return OPERATORS[name](*(moved(a, device) for a in args))

    return run


def check(name: str, d: int, run: Run, dtypes: set, base: int = 0) -> str | None:
    large = ROWS[name].large
    for tokens in large.get(d, TOKENS):
        for seed in range(1 if d in large else SEEDS):
            args = OPERATORS[name].sample(WildPicks([d, tokens, seed, base] if base else [d, tokens, seed]), tokens, d)
            expected = OPERATORS[name].expect(args)
            try:
                results = [r.cpu() for r in run(name, args)]
                dtypes.update(t.dtype for t in (*args, *results) if isinstance(t, torch.Tensor))
                expected.check(tuple(results))
                if ROWS[name].exact:
                    for got, reference in zip(results, expected.torch, strict=True):
                        assert_exact(name, got, reference)
            except Exception:
                shown = ", ".join(f"{a.dtype}{list(a.shape)}" if isinstance(a, torch.Tensor) else str(a) for a in args)
                return f"{name}({shown}), seed {seed}:\n{traceback.format_exc()}"
    return None


def check_case(name: str, case: str, run_case: Callable[[str, tuple], Iterable[tuple]]) -> str | None:
    try:
        args = ROWS[name].cases[case]()
        expected = as_tuple(getattr(bk.reference, name)(*args))
        for results in run_case(name, args):
            for got, reference in zip(results, expected, strict=True):
                assert_exact(name, got.cpu(), reference)
    except Exception:
        return traceback.format_exc()
    return None


# More than 2^31 elements. Only the end is touched: memory that is mapped but never touched costs nothing where `run`
# skips the rest of the grid.


def untouched(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Zeros; on the CPU pages take memory when they are first touched (torch.zeros touches all of them)."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    *rows, last = shape
    return torch.from_numpy(np.zeros((*rows, last * dtype.itemsize), np.uint8)).view(dtype)


def huge_pack_bits(device: str):
    for shape in ((2**31 + 4096 + 8,), (2**20 + 600, 2049)):  # the fast path, and rows with pad bits
        x = untouched(shape, torch.bool, device)
        last = x.view(-1)[-1000:] if len(shape) == 1 else x[-1]
        last.copy_(torch.rand(last.shape) < 0.5)
        yield (x,), bk.reference.pack_bits(last)


def huge_unpack_bits(device: str):
    for rows, d in ((2**20 + 3, 2048), (2**20 + 3, 2049)):
        bits = untouched((rows, (d + 7) // 8), torch.uint8, device)
        bits[-1] = torch.arange(bits.shape[1])
        scale, token_scale = torch.rand(d, device=device), torch.ones(rows, device=device)
        token_scale[-1] = 3.0
        expected = bk.reference.unpack_bits(bits[-1:], d, scale, None, token_scale[-1:], torch.float16)
        yield (bits, d, scale, None, token_scale, torch.float16), expected


def huge_binarize(device: str):
    x = untouched((2**20 + 3, 2056), torch.bfloat16, device)
    x[-1].copy_(torch.randn(2056))
    yield (x, "layer", 1e-6, False), bk.reference.binarize(x[-1:], "layer", 1e-6, False)[0]


def huge_unpack_matmul(device: str):
    bits = untouched((2**21 + 3, 4), torch.uint8, device)
    bits[-1] = torch.arange(4)
    args = torch.randn(1025, 32).to(device, torch.bfloat16), None, None, None, torch.bfloat16
    yield (bits, *args), bk.reference.unpack_matmul(bits[-1:], *args)[:, -60:]  # those of two tiles of any kernel


def huge_hamming_distance(device: str):
    a, b = untouched((2**15 + 3, 8), torch.uint8, device), untouched((2**16, 8), torch.uint8, device)
    a[-1], b[-1] = torch.arange(8), 255
    yield (a, b), bk.reference.hamming_distance(a[-1:], b)[:, -100:]


#: (device) -> arguments, and what the end of the first result must be.
HUGE = {
    "pack_bits": huge_pack_bits,
    "unpack_bits": huge_unpack_bits,
    "binarize": huge_binarize,
    "unpack_matmul": huge_unpack_matmul,
    "hamming_distance": huge_hamming_distance,
}


def check_huge(name: str, run: Run, device: str) -> str | None:
    try:
        for args, expected in HUGE[name](device):
            result, *_ = run(name, args)
            assert_exact(name, result.reshape(-1)[-expected.numel() :].cpu(), expected.reshape(-1).cpu())
    except (MemoryError, RuntimeError) as error:
        return f"skip: {error}" if "memory" in f"{type(error)} {error}".lower() else traceback.format_exc()
    except Exception:
        return traceback.format_exc()
    return None


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("implementation", choices=("triton", "cuda", "emulated"))
    parser.add_argument("where")
    parser.add_argument("--operators", help="names with commas between")
    parser.add_argument("--channels", help="numbers with commas between; then nothing larger is tested")
    parser.add_argument("--huge", action="store_true", help="test more than 2^31 elements as well, whatever --channels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    implementation, where = arguments.implementation, arguments.where
    if implementation == "emulated":
        from .emulated import Emulator

        emulator = Emulator(where)
        run, run_case, run_huge, device = emulator.run, emulator.run_case, emulator.run_end, "cpu"
    else:
        run, run_huge, device = on_backend(implementation, where), on_backend(implementation, where), where

        def run_case(name, args):
            yield run(name, args)

        if implementation == "triton" and where == "cpu":
            from .interpreter import end_of_grid

            def run_huge(name, args):
                with end_of_grid(2):
                    return run(name, args)

    chosen = arguments.operators.split(",") if arguments.operators else ROWS
    channels = tuple(map(int, arguments.channels.split(","))) if arguments.channels else None
    if device != "cpu" and torch.cuda.get_device_capability() < (8, 9):
        WildPicks.float8 = False
    report = {}
    for name in (name for name in operators_of(implementation) if name in chosen):
        dtypes: set = set()
        ds = channels or (*CHANNELS, *ROWS[name].large)
        failures = {str(d): check(name, d, run, dtypes, arguments.seed) for d in ds}
        if implementation != "triton":
            failures |= {case: check_case(name, case, run_case) for case in ROWS[name].cases}
        if not channels or arguments.huge:
            huge = name in HUGE
            failures["huge"] = check_huge(name, run_huge, device) if huge else "skip: no case for this operator"
        report[name] = {"failures": failures, "dtypes": sorted(str(dtype) for dtype in dtypes)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
