"""`btr bench`: end-to-end throughput."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def bench(
    shape: Literal["tiny", "small", "base", "large", "xl", "xxl"] = "base",
    passages: int = 10,
    passage_length: int = 128,
    query_length: int = 20,
    new_tokens: int = 8,
    preset: Literal["none", "paper", "aggressive"] = "aggressive",
    json: Path | None = None,
    plot: Path | None = None,
    passages_file: Path | None = None,
    cut_point: Literal["attention_output", "layer_output"] = "attention_output",
    precision: Literal["exact", "fast", "int8", "fp8"] = "exact",
    repeats: int = 5,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Measures the Atlas, DeFormer and BTR readers side by side over real text, with random weights of the true shape.

    Args:
        shape: Sizes of T5 v1.1; tiny is for smoke runs.
        passages: Passages per question.
        passage_length: Tokens per passage.
        query_length: Tokens per question, the sentinel included.
        new_tokens: Tokens decoded, exactly.
        preset: Shares of tokens that BTR keeps.
        json: File to write the report to.
        plot: File to draw the stages into (.png, .svg, .pdf).
        passages_file: Corpus in Atlas' format; Python's reference topics unless told.
        cut_point: State that BTR keeps: after the attention of the cut layer, or after the whole layer.
        precision: Of the projections of bits (btr_kernels.prepare_weight).
        repeats: Alternating rounds measured, after one that warms up.
        threads: Threads of torch; its own setting unless told.
        seed: Seed of the weights.
    """
    from ..benchmark import BenchmarkSettings, run_benchmark
    from ..benchmark_report import format_table, save_plot

    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"plot must end in .png, .svg or .pdf, got {plot}")
    for file in (json, plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{file}: its directory does not exist")
    settings = BenchmarkSettings(
        shape, passages, passage_length, query_length, new_tokens, preset, cut_point, precision, repeats, threads, seed
    )
    report = run_benchmark(settings, passages_file)
    print(format_table(report))
    if json is not None:
        from json import dumps

        json.write_text(dumps(report, indent=2) + "\n")
    if plot is not None:
        save_plot(report, plot)
