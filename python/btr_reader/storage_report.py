"""The comparison of ways to compress a store as a Markdown table and as a plot."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any


def format_markdown(report: dict[str, Any]) -> str:
    """What was measured in a sentence, and a table with a row for every store that could be made."""
    settings = report["settings"]
    lines = [
        f"{settings['passages']:,} passages, {settings['tokens']:,} tokens, {settings['channels']} channels, cut at "
        f"{settings['cut']['cut_point']} of layer {settings['cut']['cut_layer']}; original token ids "
        f"{'kept' if settings['original_ids'] else 'dropped'}; statistics {settings['statistics']} "
        f"({settings['statistics_tokens']:,} tokens); final states of {settings['sample']} passages.",
        "",
        "| mechanism | settings | bytes per token | vs float32 | flipped bits | cosine to bits | cosine to floats |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for row in report["rows"]:
        if "unreachable" not in row:
            lines.append(
                f"| {row['mechanism']} | {_options(row['options'])} | {row['bytes_per_token']['total']:.1f} | "
                f"{row['ratio']:.1f}x | {row['flipped_bits']:.2%} | {row['cosine_to_bits']:.4f} | "
                f"{row['cosine_to_floats']:.4f} |"
            )
    unreachable = [row for row in report["rows"] if "unreachable" in row]
    if unreachable:
        lines += ["", "Not reachable: " + "; ".join(f"{r['mechanism']} at {r['asked_for']:.1f}" for r in unreachable)]
    return "\n".join(lines)


def _options(options: dict[str, Any]) -> str:
    parts = []
    if options.get("keep", 1) < 1:
        parts.append(f"keep {options['keep']:.2f}")
    if "masked_bits" in options:
        parts.append(f"{options['masked_bits']} bits")
    return ", ".join(parts)


def save_plot(report: dict[str, Any], path: str | Path) -> None:
    """Flipped bits and cosines over bytes per token, a line for every mechanism; the format follows from the ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in report["rows"] if "unreachable" not in row]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    titles = {
        "flipped_bits": "flipped bits",
        "cosine_to_bits": "final states: cosine to undistorted bits",
        "cosine_to_floats": "final states: cosine to floats",
    }
    for panel, (name, title) in zip(axes, titles.items(), strict=True):
        for mechanism, rows in groupby(measured, key=lambda row: row["mechanism"]):
            points = sorted((row["bytes_per_token"]["total"], row[name]) for row in rows)
            panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=mechanism)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("bytes per token read")
        panel.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=4)
    figure.savefig(path)
    pyplot.close(figure)
