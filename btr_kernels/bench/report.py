"""A run's results as tables (plain text or Markdown) and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .machine import Limit
from .measure import Result

#: Raised whenever a key changes its meaning or goes away.
FORMAT = 2

HEADER = (
    "case", "threads", "time", "GB/s", "Gop/s", "vs baseline", "vs best peer", "best peer", "% of limit", "limit",
    "spread", "scaling",
)  # fmt: skip
TARGETS_HEADER = ("case", "against", "measured", "target", "stretch", "verdict")
#: Columns that hold text; the others are aligned to the right.
_TEXT = ("case", "best peer", "limit", "against", "verdict")

LEGEND = (
    "time: median a call, {clocks}. vs baseline: how many times faster than plain PyTorch (btr_kernels.reference; for "
    "unpack_matmul: unpack, then torch.matmul). vs best peer: than the fastest other implementation at hand. GB/s and "
    "Gop/s: bytes that must move and operations of the definition, a second. % of limit: the least time that the "
    "measured limits allow, max(bytes / bandwidth, operations / rate of multiply-adds), over the time taken; code that "
    "gets around multiply-adds (tables, popcounts) can exceed 100% of their rate. spread: interquartile range. "
    "scaling: wall time on one thread over wall time on this many, in percent of the number of threads. Inputs are "
    "rotated through a pool larger than the last-level cache, except in rows that say 'in cache'."
)


@dataclass
class Report:
    """Everything that one run of the benchmark found.

    Attributes:
        command: repeats the run.
        environment: see `machine.environment`.
        limits: the measured limits, for every number of threads.
        results: a row a case and number of threads.
        skipped: cases that the backend cannot run, with the reason.
        complete: whether all cases that were asked for are there.
    """

    command: str
    environment: dict[str, object]
    limits: list[Limit] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def scaling(self, result: Result) -> float | None:
        """Percent of the speed that as many times one thread's would be; None for one thread, or without its row."""
        for one in self.results:
            if one.case is result.case and one.threads == 1 < result.threads:
                return 100 * one.ours.wall / (result.ours.wall * result.threads)
        return None

    def as_dict(self) -> dict[str, object]:
        """What `save` writes; layout `FORMAT`."""
        return {
            "format": FORMAT,
            "complete": self.complete,
            "command": self.command,
            "environment": self.environment,
            "limits": [asdict(limit) for limit in self.limits],
            "results": [{**result.as_dict(), "scaling_percent": self.scaling(result)} for result in self.results],
            "skipped": self.skipped,
        }

    def save(self, path: str | Path) -> None:
        """Write the JSON form, with directories made as needed; whoever reads it meanwhile sees the old or the new."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        partial.replace(path)

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of all results, in the order of HEADER."""
        return [row(result, self.scaling(result)) for result in self.results]

    def target_rows(self) -> list[tuple[str, ...]]:
        """The cells of all verdicts, in the order of TARGETS_HEADER."""
        return [
            (result.case.name, *verdict_cells(verdict.as_dict()))
            for result in self.results
            for verdict in result.verdicts
        ]

    def text(self) -> str:
        """The tables for a terminal."""
        blocks = [_text_table(HEADER, self.rows())]
        if targets := self.target_rows():
            blocks.append(f"Targets, one thread: {self._score()}\n{_text_table(TARGETS_HEADER, targets)}")
        return "\n\n".join([*blocks, "\n".join(self._notes())])

    def markdown(self) -> str:
        """The tables for a README."""
        blocks = [markdown_table(HEADER, self.rows())]
        if targets := self.target_rows():
            blocks.append(f"Targets, one thread: {self._score()}\n\n{markdown_table(TARGETS_HEADER, targets)}")
        return "\n\n".join([*blocks, "\n".join(f"{note}  " for note in self._notes())])

    def _score(self) -> str:
        verdicts = [verdict for result in self.results for verdict in result.verdicts]
        return f"{sum(verdict.met for verdict in verdicts)} of {len(verdicts)} met"

    def _notes(self) -> list[str]:
        missing = {name: reason for result in self.results for name, reason in result.missing.items()}
        clocks = {result.threads: CLOCKS[result.clock] for result in self.results}
        return [
            LEGEND.format(clocks=", ".join(f"{clock} on {threads_text([n])}" for n, clock in clocks.items())),
            *(
                f"Limit {limit.name}, {threads_text([limit.threads])}: {rate(limit.rate, limit.unit)} ({limit.how})."
                for limit in self.limits
            ),
            *(f"Peer not measured: {name} ({reason})." for name, reason in missing.items()),
            *(f"Skipped: {name} ({reason})." for name, reason in self.skipped.items()),
            f"Environment: {summary(self.environment)}.",
            *([] if self.complete else ["The run was interrupted: rows are missing."]),
            f"Command: {self.command}",
        ]


CLOCKS = {"cpu": "CPU time of all threads", "wall": "wall time"}


def row(result: Result, scaling: float | None) -> tuple[str, ...]:
    """The cells of a result, in the order of HEADER."""
    peer = result.vs_best_peer
    return (
        result.case.name,
        str(result.threads),
        duration(result.seconds(result.ours)),
        number(result.bytes_per_second / 1e9),
        number(result.operations_per_second / 1e9),
        f"{number(result.vs_baseline)}x",
        "-" if peer is None else f"{number(peer)}x",
        result.best_peer or "-",
        f"{result.percent_of_limit:.0f}%",
        result.limit,
        f"{result.spread:.0f}%",
        "-" if scaling is None else f"{scaling:.0f}%",
    )


def verdict_cells(verdict: dict) -> tuple[str, ...]:
    """The cells of TARGETS_HEADER after the first, from what JSON holds of a verdict."""

    def value(key: str) -> str:
        return f"{100 * verdict[key]:.0f}%" if verdict["of_limit"] else f"{number(verdict[key])}x"

    if verdict["value"] >= verdict["stretch"]:
        words = "stretch met"
    else:
        words = "met" if verdict["met"] else f"short by {verdict['short_percent']:.0f}%"
    return verdict["against"], *map(value, ("value", "target", "stretch")), words


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = ["---" if title in _TEXT else "--:" for title in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *rows))


def _text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [header, *rows]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if title in _TEXT else cell.rjust(width)
            for title, cell, width in zip(header, cells, widths, strict=True)
        ).rstrip()
        for cells in table
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def threads_text(threads: Sequence[int]) -> str:
    return " and ".join(map(str, threads)) + (" thread" if list(threads) == [1] else " threads")


def summary(environment: dict[str, object]) -> str:
    """The environment in one line: CPU, threads, instruction set, backend, versions."""
    isa = environment["instruction_set"] or "no compiled kernels"
    packages = ("btr_kernels", "torch", "numpy", "faiss_cpu", "numkong")
    versions = ", ".join(f"{name.replace('_', '-')} {environment[name]}" for name in packages if environment[name])
    return (
        f"{environment['cpu']}, {threads_text(environment['threads'])}, backend {environment['backend']}, "
        f"kernels {isa}, {versions} (torch uses {environment['torch_instruction_set']}; OMP_WAIT_POLICY "
        f"{environment['omp_wait_policy'] or 'not set'})"
    )


def number(value: float) -> str:
    """Three digits, never in exponent form."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def duration(seconds: float) -> str:
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{number(seconds * factor)} {unit}"
    return f"{number(seconds)} s"


def rate(value: float, unit: str) -> str:
    return f"{number(value / 1e9)} {'GB/s' if unit == 'B/s' else 'Gop/s'}"


def progress_line(result: Result) -> str:
    """A finished case in a few words."""
    ratio = number(result.vs_baseline)
    return (
        f"{result.case.name}, {threads_text([result.threads])}: {duration(result.seconds(result.ours))}, "
        f"{ratio}x as fast as the baseline"
    )
