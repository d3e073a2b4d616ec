"""Plots of a report: bars of the ratios, and a roofline. Needs matplotlib (`pip install btr-kernels[bench]`)."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from .report import CLOCKS, Report, number, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .measure import Result

#: More rows than this go into two columns.
MAX_ROWS = 36
BASELINE_COLOUR, PEER_COLOUR = "#4477aa", "#ee8866"
#: One colour and marker an operator; the colours are told apart with every kind of colour vision.
_COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000", "#ee8866", "#882255",
)  # fmt: skip
_MARKERS = "osD^vPdXhp"


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

    results = report.results
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
        axes.set_xlabel(f"times faster, {CLOCKS[report.clock]}")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
    _title(figure, "btr_kernels against plain PyTorch and the best other implementation", report)
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


def roofline(report: Report) -> Figure:
    """Operations a byte against the rate achieved, under the measured limits; the baseline as hollow marks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots()
    results = report.results
    intensity = [r.case.operations / r.case.bytes.total for r in results]
    low, high = min(intensity) / 2, max(intensity) * 2
    _draw_limits(axes, report, low, high)
    operators = list(dict.fromkeys(r.case.operator for r in results))
    for operator, colour, marker in zip(operators, cycle(_COLOURS), cycle(_MARKERS), strict=False):
        rows = [(x, r) for x, r in zip(intensity, results, strict=True) if r.case.operator == operator]
        for x, r in rows:
            before = r.case.operations / r.seconds(r.baseline) / 1e9
            axes.plot([x, x], [before, r.operations_per_second / 1e9], color=colour, linewidth=0.7, alpha=0.5, zorder=2)
            axes.plot(x, before, marker, markerfacecolor="white", markeredgecolor=colour, markersize=5, zorder=3)
        axes.plot([x for x, _ in rows], [r.operations_per_second / 1e9 for _, r in rows], marker, color=colour,
                  markeredgecolor="white", markeredgewidth=0.5, markersize=7, label=operator, zorder=4)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("billions of operations a second")
    axes.grid(which="major", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot([], [], "o", markerfacecolor="white", markeredgecolor="#444444", markersize=5,
              label="PyTorch baseline of each")  # fmt: skip
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    _title(figure, "Rates achieved and measured limits (rows in cache may pass those of main memory)", report)
    return figure


def _draw_limits(axes: Axes, report: Report, low: float, high: float) -> None:
    ceiling = next(limit.rate for limit in report.limits if limit.name == "matmul") / 1e9
    axes.axhline(ceiling, color="black", linewidth=1)
    dashes = {"read": "-", "write": "--", "copy": ":"}
    memory = [limit for limit in report.limits if limit.name.endswith("main memory")]
    axes.annotate(f"float32 torch.matmul, {number(ceiling)} Gop/s", (low, ceiling), (6, 3),
                  textcoords="offset points", fontsize=8)  # fmt: skip
    for limit in memory:
        bandwidth, kind = limit.rate / 1e9, limit.name.partition(",")[0]
        # A straight line in logarithmic axes needs its two ends only; past the ceiling it bounds nothing.
        end = min(high, ceiling / bandwidth)
        axes.plot([low, end], [low * bandwidth, end * bandwidth], dashes[kind], color="black", linewidth=1,
                  label=f"{kind} bandwidth, {number(bandwidth)} GB/s")  # fmt: skip


def _title(figure: Figure, title: str, report: Report) -> None:
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(summary(report.environment), fontsize=6.5, color="#666666")
