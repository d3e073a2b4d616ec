"""A run's results as a table (plain text or Markdown) and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .machine import Limit
from .measure import Result

#: Raised whenever a key changes its meaning or goes away.
FORMAT = 1

HEADER = ("case", "time", "GB/s", "Gop/s", "vs baseline", "vs best peer", "best peer", "% of limit", "limit", "spread")
#: Columns that hold text; the others are aligned to the right.
_TEXT = ("case", "best peer", "limit")

LEGEND = (
    "time: median a call, {clock}. vs baseline: how many times faster than plain PyTorch (btr_kernels.reference; for "
    "unpack_matmul: unpack, then torch.matmul). vs best peer: than the fastest other implementation at hand. GB/s and "
    "Gop/s: bytes that must move and operations of the definition, a second. % of limit: the least time that the "
    "measured limits allow, max(bytes / bandwidth, operations / matmul rate), over the time taken; code that gets "
    "around multiply-adds can exceed 100% of the matmul rate. spread: interquartile range. Inputs are rotated through "
    "a pool larger than the last-level cache, except in rows that say 'in cache'."
)


@dataclass
class Report:
    """Everything that one run of the benchmark found.

    Attributes:
        command: repeats the run.
        clock: "cpu" or "wall", the clock of all ratios.
        environment: see `machine.environment`.
        limits: the measured limits.
        results: a row a case.
        skipped: cases that the backend cannot run, with the reason.
    """

    command: str
    clock: str
    environment: dict[str, object]
    limits: list[Limit] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """What `save` writes; layout `FORMAT`."""
        return {
            "format": FORMAT,
            "command": self.command,
            "clock": self.clock,
            "environment": self.environment,
            "limits": [asdict(limit) for limit in self.limits],
            "results": [result.as_dict() for result in self.results],
            "skipped": self.skipped,
        }

    def save(self, path: str | Path) -> None:
        """Write the JSON form, with directories made as needed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def text(self) -> str:
        """The table for a terminal."""
        rows = [HEADER, *map(row, self.results)]
        widths = [max(len(cells[column]) for cells in rows) for column in range(len(HEADER))]
        lines = [
            "  ".join(
                cell.ljust(width) if title in _TEXT else cell.rjust(width)
                for title, cell, width in zip(HEADER, cells, widths, strict=True)
            ).rstrip()
            for cells in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *self._notes()])

    def markdown(self) -> str:
        """The table for a README."""
        marks = ["---" if title in _TEXT else "--:" for title in HEADER]
        lines = [" | ".join(cells) for cells in (HEADER, marks, *map(row, self.results))]
        return "\n".join([*(f"| {line} |" for line in lines), "", *(f"{note}  " for note in self._notes())])

    def _notes(self) -> list[str]:
        missing = {name: reason for result in self.results for name, reason in result.missing.items()}
        return [
            LEGEND.format(clock=CLOCKS[self.clock]),
            *(f"Limit {limit.name}: {_rate(limit.rate, limit.unit)} ({limit.how})." for limit in self.limits),
            *(f"Peer not measured: {name} ({reason})." for name, reason in missing.items()),
            *(f"Skipped: {name} ({reason})." for name, reason in self.skipped.items()),
            f"Environment: {summary(self.environment)}.",
            f"Command: {self.command}",
        ]


CLOCKS = {"cpu": "CPU time of all threads", "wall": "wall time"}


def row(result: Result) -> tuple[str, ...]:
    """The cells of a result, in the order of HEADER."""
    peer = result.vs_best_peer
    return (
        result.case.name,
        duration(result.seconds(result.ours)),
        number(result.bytes_per_second / 1e9),
        number(result.operations_per_second / 1e9),
        f"{number(result.vs_baseline)}x",
        "-" if peer is None else f"{number(peer)}x",
        result.best_peer or "-",
        f"{result.percent_of_limit:.0f}%",
        result.limit,
        f"{result.spread:.0f}%",
    )


def summary(environment: dict[str, object]) -> str:
    """The environment in one line: CPU, threads, instruction set, backend, versions."""
    isa = environment["instruction_set"] or "no compiled kernels"
    threads = environment["threads"]
    packages = ("btr_kernels", "torch", "numpy", "faiss_cpu", "numkong")
    versions = ", ".join(f"{name.replace('_', '-')} {environment[name]}" for name in packages if environment[name])
    return (
        f"{environment['cpu']}, {threads} thread{'s' if threads != 1 else ''}, backend {environment['backend']}, "
        f"kernels {isa}, {versions} (torch uses {environment['torch_instruction_set']})"
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


def _rate(rate: float, unit: str) -> str:
    return f"{number(rate / 1e9)} {'GB/s' if unit == 'B/s' else 'Gop/s'}"


def progress_line(result: Result) -> str:
    """A finished case in a few words."""
    ratio = number(result.vs_baseline)
    return f"{result.case.name}: {duration(result.seconds(result.ours))}, {ratio}x as fast as the baseline"
