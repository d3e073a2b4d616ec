"""The benchmark's report as a table and as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..stages import STAGES


def format_table(report: dict[str, Any]) -> str:
    """A plain-text table: one row per reader, with throughput, speed-up over Atlas, latencies, milliseconds by stage,
    memory that a question takes, and tokens that the decoder attends to. A sweep has a table of its own."""
    settings = report["settings"]
    keep = settings["keep"]
    stages = [stage.replace("_", " ") for stage in STAGES]
    header = ["reader", "queries/s", "speed-up", "p50 ms", "p90", "p99", *stages, "peak MB", "tokens"]
    rows = [header]
    for name, reader in report["readers"].items():
        peak = reader["peak_memory"]
        rows.append(
            [
                name,
                f"{reader['queries_per_second']:.3f}",
                f"{report['speedup'].get(name, 1.0):.2f}x",
                *(f"{1000 * reader['latency'][p]:.0f}" for p in ("p50", "p90", "p99")),
                *(f"{1000 * reader['stages'][stage]:.1f}" for stage in STAGES),
                "-" if peak is None else f"{peak / 1e6:.0f}",
                f"{reader['memory_tokens']}",
            ]
        )
    title = (
        f"{report['shape']}: {settings['passages']} passages x {settings['passage_length']} tokens, query "
        f"{settings['query_length']}, {settings['new_tokens']} new tokens; preset {settings['preset']} (kept: offline "
        f"{keep['offline']}, per joint layer {keep['joint']}, to the decoder {keep['decoder']})"
    )
    where = (
        f"{report['device']}, {settings['threads']} threads, torch {settings['torch']}; "
        f"medians of {settings['repeats']} alternating rounds"
    )
    lines = [title, where, "", *_aligned(rows)]
    if "sweep" in report:
        header = ["kept offline", "per joint layer", "to the decoder", "decoder's tokens", "ms", "speed-up"]
        lines += [
            "",
            "BTR at several shares of kept tokens",
            "",
            *_aligned([header, *map(_sweep_row, report["sweep"])]),
        ]
    return "\n".join(lines)


def _sweep_row(row: dict[str, Any]) -> list[str]:
    shares = [f"{share:.0%}" for share in (*row["keep"].values(), row["memory_tokens"])]
    return [*shares, f"{1000 * row['seconds']:.0f}", f"{row['speedup']:.2f}x"]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def save_plot(report: dict[str, Any], path: str | Path) -> None:
    """Stacked bars of the seconds by stage, one bar per reader; the format follows from the file's ending."""
    pyplot = _pyplot()
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


def save_sweep_plot(report: dict[str, Any], path: str | Path) -> None:
    """The speed-up of BTR over Atlas against the share of tokens that reach the decoder, from the report's sweep."""
    pyplot = _pyplot()
    sweep = report["sweep"]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    tokens, speedups = [row["memory_tokens"] for row in sweep], [row["speedup"] for row in sweep]
    axes.plot(tokens, speedups, "o-", label="btr")
    for row, x, y in zip(sweep, tokens, speedups, strict=True):
        keep = row["keep"]
        label = f"{keep['offline']:.0%} / {keep['joint']:.0%} / {keep['decoder']:.0%}"
        axes.annotate(label, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=7)
    for name in ("deformer", "atlas-int8"):
        if name in report["speedup"]:
            axes.axhline(report["speedup"][name], linestyle="--", linewidth=1, color="gray")
            axes.annotate(name, (0.02, report["speedup"][name]), xycoords=("axes fraction", "data"), fontsize=7)
    axes.set_xlabel("tokens that the decoder attends to, of those without merging")
    axes.set_ylabel("times as fast as atlas")
    axes.set_xlim(0, 1.15)
    axes.set_ylim(bottom=0)
    settings = report["settings"]
    axes.set_title(
        f"{report['shape']}, {settings['passages']} x {settings['passage_length']} tokens, {report['device']}\n"
        "labels: kept offline / in each joint layer / for the decoder",
        fontsize=8,
    )
    figure.savefig(path)
    pyplot.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
