"""The benchmark's report as a table and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .stages import STAGES


def format_table(report: dict[str, Any]) -> str:
    """A plain-text table: one row per reader, with throughput, speed-up over Atlas, and milliseconds by stage."""
    settings = report["settings"]
    keep = settings["keep"]
    header = ["reader", "queries/s", "speed-up", "ms", "min..max ms", *(f"{stage} ms" for stage in STAGES)]
    rows = [header]
    for name, reader in report["readers"].items():
        spread = reader["spread"]
        rows.append(
            [
                name,
                f"{reader['queries_per_second']:.3f}",
                f"{report['speedup'].get(name, 1.0):.2f}x",
                f"{1000 * reader['seconds']:.0f}",
                f"{1000 * spread['minimum']:.0f}..{1000 * spread['maximum']:.0f}",
                *(f"{1000 * reader['stages'][stage]:.1f}" for stage in STAGES),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    title = (
        f"{report['shape']}: {settings['passages']} passages x {settings['passage_length']} tokens, query "
        f"{settings['query_length']}, {settings['new_tokens']} new tokens; preset {settings['preset']} (kept: offline "
        f"{keep['offline']}, per joint layer {keep['joint']}, to the decoder {keep['decoder']})"
    )
    where = (
        f"{report['device']}, {settings['threads']} threads, torch {settings['torch']}; "
        f"medians of {settings['repeats']} alternating rounds"
    )
    return "\n".join([title, where, "", *lines])


def save_plot(report: dict[str, Any], path: str | Path) -> None:
    """Stacked bars of the seconds by stage, one bar per reader; the format follows from the file's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(report["readers"])
    figure, axes = pyplot.subplots(figsize=(8, 0.9 * len(names) + 1.8), layout="constrained")
    left = [0.0] * len(names)
    for stage in STAGES:
        seconds = [report["readers"][name]["stages"][stage] for name in names]
        axes.barh(names, seconds, left=left, label=stage.replace("_", " "))
        left = [start + width for start, width in zip(left, seconds, strict=True)]
    for row, name in enumerate(names):
        axes.annotate(f" {report['speedup'].get(name, 1.0):.2f}x", (left[row], row), va="center")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("seconds per question")
    settings = report["settings"]
    axes.set_title(
        f"{report['shape']}, {settings['passages']} x {settings['passage_length']} tokens, {report['device']}",
        fontsize=9,
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    figure.savefig(path)
    pyplot.close(figure)
