"""The command `python -m btr_kernels.bench`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import backends, current_backend, use_backend
from ..backends import NAMES
from .case import Case, WrongResult
from .cases import CASES, OPERATORS
from .machine import Limits, environment, keep_freed_memory, thread_count
from .measure import Settings, measure
from .report import Report, progress_line, summary
from .timing import SYSTEM_CLOCK

PROGRAM = "python -m btr_kernels.bench"
#: Time for all contenders of a case together.
SECONDS, QUICK_SECONDS = 1.8, 0.5
#: Side of the matrices of the matmul limit.
MATMUL, QUICK_MATMUL = 2048, 1024


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
    p.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    p.add_argument("--quick", action="store_true", help="fewer rows, less time a row: a first look")
    p.add_argument("--threads", type=_positive(int), default=1, help="threads of torch and faiss (default 1)")
    p.add_argument("--clock", choices=("cpu", "wall"), help="what ratios compare: CPU time of all threads, or wall "
                   "time (default: cpu with one thread, else wall)")  # fmt: skip
    p.add_argument("--backend", choices=(*NAMES, "auto"), help="backend of ours (default: BTR_BACKEND, or auto)")
    p.add_argument("--seconds-per-case", type=_positive(float), metavar="S", help="time for all contenders of a case "
                   f"(default {SECONDS}, with --quick {QUICK_SECONDS})")  # fmt: skip
    p.add_argument("--json", type=Path, metavar="FILE", help="write all results")
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
    with chosen, thread_count(options.threads):
        try:
            report = run(cases, options, shlex.join([*_program(), *arguments]))
        except WrongResult as error:
            print(f"wrong result: {error}", file=sys.stderr)
            return 1
    print(report.markdown() if options.markdown else report.text())
    if options.json:
        report.save(options.json)
    if options.plots:
        for path in plots.save(report, options.plots):
            print(f"Plot: {path}")
    return 0


def run(cases: Sequence[Case], options: argparse.Namespace, command: str) -> Report:
    """Measure the cases under the thread count and backend in force."""
    clock = options.clock or ("cpu" if options.threads == 1 else "wall")
    seconds = options.seconds_per_case or (QUICK_SECONDS if options.quick else SECONDS)
    machine = environment(options.threads)
    report = Report(command, clock, machine)
    limits = Limits(options.threads, getattr(SYSTEM_CLOCK, clock), QUICK_MATMUL if options.quick else MATMUL)
    repeat = [*_program(), "--threads", str(options.threads), "--clock", clock]
    repeat += ["--seconds-per-case", f"{seconds:g}"]
    if options.backend:
        repeat += ["--backend", options.backend]
    settings = Settings(seconds, clock, tuple(repeat), summary(machine))
    # The roofline needs all of main memory's limits, whichever the cases use.
    for kind in ("read", "write", "copy"):
        limits.bandwidth(kind)
    limits.matmul()
    with _progress(len(cases)) as advance:
        for done, case in enumerate(cases, 1):
            advance(case.name, None)
            try:
                report.results.append(measure(case, limits, settings))
            except NotImplementedError as error:
                report.skipped[case.name] = str(error)
                advance(None, f"[{done}/{len(cases)}] {case.name}: skipped")
            else:
                advance(None, f"[{done}/{len(cases)}] {progress_line(report.results[-1])}")
    report.limits = limits.measured()
    return report


def _program() -> list[str]:
    """The start of a command that repeats a run: the environment variables that change results, and the program."""
    variables = [f"{name}={os.environ[name]}" for name in ("BTR_ISA", "BTR_BACKEND") if name in os.environ]
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
        and (case.name in options.cases if options.cases else case.quick or not options.quick)
    ]
    if not cases:
        p.error("no row matches --ops and --cases together")
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

        def advance(starting: str | None, finished: str | None) -> None:
            if finished:
                print(finished, file=sys.stderr, flush=True)

        yield advance
        return
    with tqdm(total=total, file=sys.stderr, unit="case") as bar:

        def advance(starting: str | None, finished: str | None) -> None:
            if starting:
                bar.set_postfix_str(starting)
            else:
                bar.update()

        yield advance


def _positive(kind: type) -> type:
    def convert(text: str):
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    # argparse names the type in its message.
    convert.__name__ = f"positive {kind.__name__}"
    return convert
