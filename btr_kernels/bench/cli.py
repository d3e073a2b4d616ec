"""The command `python -m btr_kernels.bench`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .. import backends, current_backend, use_backend
from ..backends import NAMES
from .case import Case, WrongResult
from .cases import CASES, OPERATORS
from .machine import PEER_VARIABLES, Limits, environment, keep_freed_memory, thread_count
from .measure import Settings, input_pool, measure
from .report import Report, progress_line, summary
from .timing import SYSTEM_CLOCK

PROGRAM = "python -m btr_kernels.bench"
#: Exit status of a run that was stopped with Ctrl-C, as a shell has it.
INTERRUPTED = 130
#: Time for all contenders of a case together, at each number of threads.
SECONDS, QUICK_SECONDS = 1.2, 0.3


def parser() -> argparse.ArgumentParser:
    """The options, for `--help` and for whoever wants to embed them."""
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Times every operator against plain PyTorch, the strongest other implementations at hand and the "
        "measured limits of this machine. Every result is checked against the baseline before it is timed.",
    )
    p.add_argument("--ops", nargs="+", metavar="OP", choices=OPERATORS,
                   help=f"only these operators: {', '.join(OPERATORS)}")  # fmt: skip
    p.add_argument("--cases", nargs="+", metavar="NAME", help="only these rows, by their names in the table")
    p.add_argument("--suite", choices=("all", "targets"), default="all",
                   help="all rows, or only those that carry a target (default all)")  # fmt: skip
    p.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    p.add_argument("--quick", action="store_true", help="fewer rows, less time a row: a first look")
    p.add_argument("--threads", type=_thread_counts, default=(1,), metavar="N[,N...]",
                   help="threads of torch and faiss; several numbers give a row each, 1,2 for how it scales (default "
                   "1)")  # fmt: skip
    p.add_argument("--clock", choices=("cpu", "wall"), help="what ratios compare: CPU time of all threads, or wall "
                   "time (default: cpu on one thread, wall on several)")  # fmt: skip
    p.add_argument("--backend", choices=(*NAMES, "auto"), help="backend of ours (default: BTR_BACKEND, or auto)")
    p.add_argument("--seconds-per-case", type=_positive(float), metavar="S", help="time for all contenders of a case "
                   f"(default {SECONDS}, with --quick {QUICK_SECONDS})")  # fmt: skip
    p.add_argument("--json", type=Path, metavar="FILE", help="write all results, as they come")
    p.add_argument("--plots", type=Path, metavar="DIR", help="write ratios.png and roofline.png (needs matplotlib)")
    p.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if every result was right."""
    p = parser()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = p.parse_args(arguments)
    cases = _select(p, options)
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    if options.plots:
        from . import plots

        if (reason := plots.why_not()) is not None:
            p.error(f"--plots: {reason}")
    backend = options.backend or _default_backend(p)
    try:
        chosen = use_backend(backend)
    except RuntimeError as error:
        p.error(f"--backend: {error}")
    if backend != "auto" and "cpu" not in (devices := backends()[backend].devices):
        p.error(f"--backend: the rows are CPU tensors, and backend {backend!r} takes {' or '.join(devices)} tensors")

    keep_freed_memory()
    with chosen:
        report = Report(shlex.join([*_program(), *arguments]), environment(options.threads))
        try:
            run(report, cases, options)
        except WrongResult as error:
            print(f"wrong result: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"interrupted after {len(report.results)} rows", file=sys.stderr)
    print(report.markdown() if options.markdown else report.text())
    if options.plots and report.results:
        for path in plots.save(report, options.plots):
            print(f"Plot: {path}")
    return 0 if report.complete else INTERRUPTED


def run(report: Report, cases: Sequence[Case], options: argparse.Namespace) -> None:
    """Measure the cases under the backend in force; `report`, and the JSON file if there is one, fill as it goes."""
    seconds = options.seconds_per_case or (QUICK_SECONDS if options.quick else SECONDS)
    limits, settings = {}, {}
    for threads in options.threads:
        clock = options.clock or ("cpu" if threads == 1 else "wall")
        repeat = [*_program(), "--threads", str(threads), "--clock", clock, "--seconds-per-case", f"{seconds:g}"]
        repeat += ["--backend", options.backend] if options.backend else []
        limits[threads] = Limits(threads, getattr(SYSTEM_CLOCK, clock))
        settings[threads] = Settings(
            seconds, clock, tuple(repeat), summary({**report.environment, "threads": [threads]})
        )

    def save(complete: bool = False) -> None:
        report.complete = complete
        report.limits = [limit for found in limits.values() for limit in found.measured()]
        if options.json:
            report.save(options.json)

    # The roofline needs all of main memory's limits, whichever the cases use.
    for threads, found in limits.items():
        with thread_count(threads):
            for kind in ("read", "write", "copy"):
                found.bandwidth(kind)
            found.arithmetic()
    save()
    with _progress(len(cases)) as advance:
        for done, case in enumerate(cases, 1):
            advance(case.name, None)
            lines = []
            try:
                pool = input_pool(case)
                for threads in options.threads:
                    with thread_count(threads):
                        report.results.append(measure(case, limits[threads], settings[threads], pool))
                    lines.append(progress_line(report.results[-1]))
            except NotImplementedError as error:
                report.skipped[case.name] = str(error)
                lines.append(f"{case.name}: skipped")
            save()
            advance(None, [f"[{done}/{len(cases)}] {line}" for line in lines])
    # A limit measured while the machine was busy was too low; the better of two tries counts for all rows.
    for threads, found in limits.items():
        with thread_count(threads):
            found.measure_again()
    for index, result in enumerate(report.results):
        limit, limit_seconds = limits[result.threads].of(result.case)
        report.results[index] = replace(result, limit=limit.name, limit_seconds=limit_seconds)
    save(complete=True)


def _program() -> list[str]:
    """The start of a command that repeats a run: the environment variables that change results, and the program."""
    names = ("BTR_ISA", "BTR_BACKEND", "OMP_WAIT_POLICY", *PEER_VARIABLES)
    variables = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return [*variables, *PROGRAM.split()]


def _select(p: argparse.ArgumentParser, options: argparse.Namespace) -> list[Case]:
    names = {case.name for case in CASES}
    unknown = [name for name in options.cases or () if name not in names]
    if unknown:
        p.error(f"--cases: no row is named {unknown[0]!r}; --list prints the names")
    cases = [
        case
        for case in CASES
        if (not options.ops or case.operator in options.ops)
        and (options.suite == "all" or case.targets)
        and (case.name in options.cases if options.cases else case.quick or not options.quick)
    ]
    if not cases:
        p.error("no row matches --ops, --suite and --cases together")
    return cases


def _default_backend(p: argparse.ArgumentParser) -> str:
    try:
        return current_backend()
    except (ValueError, RuntimeError) as error:
        p.error(f"BTR_BACKEND: {error}")


@contextmanager
def _progress(total: int) -> Iterator:
    """A callable `advance(starting, finished)`: a bar if tqdm is installed and stderr is a terminal, else lines."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not sys.stderr.isatty():
        start = time.monotonic()
        done = 0

        def advance(starting: str | None, finished: Sequence[str] | None) -> None:
            nonlocal done
            if finished:
                done += 1
                left = (time.monotonic() - start) / done * (total - done)
                print("\n".join(finished), f"({left:.0f} s left)", file=sys.stderr, flush=True)

        yield advance
        return
    with tqdm(total=total, file=sys.stderr, unit="case") as bar:

        def advance(starting: str | None, finished: Sequence[str] | None) -> None:
            if starting:
                bar.set_postfix_str(starting)
            else:
                bar.update()

        yield advance


def _thread_counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1 or len(set(counts)) < len(counts):
        raise ValueError
    return counts


# argparse names the type in its message.
_thread_counts.__name__ = "list of thread counts"


def _positive(kind: type) -> type:
    def convert(text: str):
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert
