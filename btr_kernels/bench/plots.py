"""Plots of a report: bars of the ratios, and a roofline. Needs matplotlib (`pip install btr-kernels[bench]`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .report import CLOCKS, Report, number, threads_text
from .roofline import figure_title, roofline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .measure import Result

#: More rows than this go into two columns.
MAX_ROWS = 36
BASELINE_COLOUR, PEER_COLOUR = "#4477aa", "#ee8866"


def why_not() -> str | None:
    """Why plots cannot be made here, or None if they can."""
    if find_spec("matplotlib") is None:
        return "matplotlib is not installed; `pip install btr-kernels[bench]` brings it"
    return None


def save(report: Report, directory: str | Path) -> list[Path]:
    """Write ratios.png and roofline.png and return their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in (("ratios", ratios), ("roofline", roofline)):
        path = directory / f"{name}.png"
        draw(report).savefig(path, dpi=130)
        paths.append(path)
    return paths


def ratios(report: Report) -> Figure:
    """Bars: how many times faster than the baseline and than the best peer, a row a case."""
    from matplotlib.figure import Figure

    # At the first number of threads: those of one thread are what targets are about.
    threads = report.results[0].threads
    results = [r for r in report.results if r.threads == threads]
    columns = 1 if len(results) <= MAX_ROWS else 2
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(9.5 * columns, 1.6 + 0.32 * rows), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    values = [r.vs_baseline for r in results] + [r.vs_best_peer for r in results if r.vs_best_peer is not None]
    for index, axes in enumerate(panels):
        axes.set_xscale("log")
        # Room on the right for the labels of the longest bars.
        axes.set_xlim(min(0.8, *values) / 1.3, max(2.0, *values) * 2.2)
        _draw_bars(axes, results[index * rows : (index + 1) * rows])
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xlabel(f"times faster, {CLOCKS[results[0].clock]}, {threads_text([threads])}")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
    figure_title(figure, "btr_kernels against plain PyTorch and the best other implementation", report)
    return figure


def _draw_bars(axes: Axes, results: list[Result]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with_peer = [(y, r) for y, r in enumerate(results) if r.vs_best_peer is not None]
    baseline = [(y - 0.2, r.vs_baseline, f"{number(r.vs_baseline)}x") for y, r in enumerate(results)]
    peer = [(y + 0.2, r.vs_best_peer, f"{number(r.vs_best_peer)}x  {r.best_peer}") for y, r in with_peer]
    for bars, colour, name in (
        (baseline, BASELINE_COLOUR, "vs PyTorch baseline"),
        (peer, PEER_COLOUR, "vs best peer"),
    ):
        positions, values = [y for y, _, _ in bars], [value for _, value, _ in bars]
        axes.barh(positions, [value - 1 for value in values], 0.38, left=1, color=colour, label=name)
        for y, value, text in bars:
            axes.annotate(text, (max(value, 1), y), (3, 0), textcoords="offset points", va="center_baseline",
                          fontsize=6.5, color="#444444")  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(results)), [r.case.name for r in results], fontsize=7.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
