"""The roofline of a report: operations a byte against the rate achieved, under the limits measured in the same run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cases import FAMILIES, FAMILY_OF
from .report import Report, number, summary, threads_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .machine import Limit
    from .measure import Result

#: One colour a family, told apart with every kind of colour vision; one marker an operator of it.
_COLOURS = dict(zip(FAMILIES, ("#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44"), strict=True))
_MARKERS = "osD^vPX*"
_DASHES = {"read": "-", "write": "--", "copy": ":"}


def roofline(report: Report) -> Figure:
    """A panel a number of threads: our rows as filled marks, tied to the best other contender as a hollow one."""
    from matplotlib.figure import Figure

    counts = list(dict.fromkeys(r.threads for r in report.results))
    figure = Figure(figsize=(3.5 + 7 * len(counts), 7), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    intensity = [_intensity(r) for r in report.results]
    span = min(intensity) / 2, max(intensity) * 2
    for axes, threads in zip(panels, counts, strict=True):
        results = [r for r in report.results if r.threads == threads]
        limits = [limit for limit in report.limits if limit.threads == threads]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(span)
        _draw_limits(axes, limits, *span)
        _draw_rows(axes, results)
        axes.set_title(threads_text([threads]), fontsize=10)
        axes.set_xlabel("operations per byte that must move")
        axes.grid(which="major", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("billions of operations a second")
    _legend(figure, report)
    figure_title(figure, "Rates achieved under the measured limits", report)
    return figure


def figure_title(figure: Figure, title: str, report: Report) -> None:
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(summary(report.environment), fontsize=6.5, color="#666666")


def _intensity(result: Result) -> float:
    return result.case.operations / result.case.bytes.total


def _draw_rows(axes: Axes, results: list[Result]) -> None:
    for r in results:
        colour, marker = _style(r.case.operator)
        others = r.peers.values() or (r.baseline,)
        other = r.case.operations / min(map(r.seconds, others)) / 1e9
        x, y = _intensity(r), r.operations_per_second / 1e9
        axes.plot([x, x], [other, y], color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        axes.plot(x, other, marker, markerfacecolor="white", markeredgecolor=colour, markersize=4.5, zorder=3)
        axes.plot(x, y, marker, color=colour, markeredgecolor="white", markeredgewidth=0.5, markersize=7.5, zorder=4)


def _style(operator: str) -> tuple[str, str]:
    family = FAMILY_OF[operator]
    of_family = list(dict.fromkeys(case.operator for case in FAMILIES[family]))
    return _COLOURS[family], _MARKERS[of_family.index(operator)]


def _draw_limits(axes: Axes, limits: list[Limit], low: float, high: float) -> None:
    ceiling = next(limit.rate for limit in limits if limit.name == "multiply-adds") / 1e9
    axes.axhline(ceiling, color="black", linewidth=1.2)
    axes.annotate(f"float32 multiply-adds, {number(ceiling)} Gop/s", (low, ceiling), (6, 3),
                  textcoords="offset points", fontsize=8)  # fmt: skip
    lines = [(limit, "black") for limit in limits if limit.name.endswith("main memory")]
    in_cache = [limit for limit in limits if limit.name.endswith("in cache")]
    # One line a kind: rows in cache differ in size, and so in the cache that serves them.
    for kind in _DASHES:
        of_kind = [limit for limit in in_cache if limit.name.startswith(kind)]
        lines += [(max(of_kind, key=lambda limit: limit.rate), "#999999")] if of_kind else []
    for limit, colour in lines:
        bandwidth, kind = limit.rate / 1e9, limit.name.partition(",")[0]
        # A straight line in logarithmic axes needs its two ends only; past the ceiling it bounds nothing.
        end = min(high, ceiling / bandwidth)
        axes.plot([low, end], [low * bandwidth, end * bandwidth], _DASHES[kind], color=colour, linewidth=1,
                  label=f"{limit.name}, {number(bandwidth)} GB/s")  # fmt: skip
    axes.legend(loc="lower right", fontsize=7, frameon=False, title="bandwidth", title_fontsize=7)


def _legend(figure: Figure, report: Report) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, marker: str = "", **style: object) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, label=label, **style)

    measured = dict.fromkeys(r.case.operator for r in report.results)
    handles = []
    for family in FAMILIES:
        operators = [operator for operator in measured if FAMILY_OF[operator] == family]
        if operators:
            handles.append(entry(family))
        for operator in operators:
            colour, marker = _style(operator)
            handles.append(entry(operator, marker, color=colour, markersize=7.5))
    handles += [
        entry(""),
        entry("hollow: the best peer", "o", markerfacecolor="white", markeredgecolor="#444444", markersize=4.5),
        entry("(the baseline where there is none)"),
        entry(""),
        entry("Above the ceiling: lookup tables and"),
        entry("popcounts do without multiply-adds."),
    ]
    legend = figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False, handletextpad=0.2)
    for text in legend.get_texts():
        if text.get_text() in FAMILIES:
            text.set_fontweight("bold")
