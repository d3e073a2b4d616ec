"""`btr bench`: end-to-end throughput."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..benchmark.settings import DEFAULT_READERS, BenchmarkSettings, Dtype, ReaderName


def bench(
    shape: Literal["tiny", "small", "base", "large", "xl", "xxl"] = "base",
    passages: int = 10,
    passage_length: int = 128,
    query_length: int = 20,
    new_tokens: int = 8,
    preset: Literal["none", "paper", "aggressive"] = "aggressive",
    json: Path | None = None,
    plot: Path | None = None,
    keep_offline: float | None = None,
    keep_joint: float | None = None,
    keep_decoder: float | None = None,
    similarity: Literal["hamming", "keys"] = "hamming",
    readers: tuple[ReaderName, ...] = DEFAULT_READERS,
    sweep: bool = False,
    sweep_plot: Path | None = None,
    passages_file: Path | None = None,
    cut_point: Literal["attention_output", "layer_output"] = "attention_output",
    precision: Literal["exact", "fast", "int8", "fp8"] = "exact",
    device: str = "cpu",
    dtype: Dtype = "float32",
    repeats: int = 5,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Measures readers side by side over real text, with random weights of the true shape.

    Atlas; DeFormer, which precomputes floats; BTR, which precomputes bits; and Atlas and BTR with linear layers of 8
    bits. All run on the same engine, in alternating rounds.

    Args:
        shape: Sizes of T5 v1.1; tiny is for smoke runs.
        passages: Passages per question.
        passage_length: Tokens per passage.
        query_length: Tokens per question, the sentinel included.
        new_tokens: Tokens decoded, exactly.
        preset: Shares of tokens that BTR keeps.
        json: File to write the report to.
        plot: File to draw the stages into (.png, .svg, .pdf).
        keep_offline: Share of a passage's tokens that is stored, instead of the preset's.
        keep_joint: Share of passage tokens kept in each joint layer, instead of the preset's.
        keep_decoder: Share of those left that the decoder attends to, instead of the preset's.
        similarity: What tokens are merged by while reading: signs of the states, or keys of the attention.
        readers: Readers to measure, atlas among them; btr-centroids stores a quarter of the bits, and restores states
            through vocabulary id and place besides (btr train btr --centroids).
        sweep: Measure BTR at several shares of kept tokens as well.
        sweep_plot: File to draw speed against kept tokens into; implies --sweep.
        passages_file: Corpus in Atlas' format; Python's reference topics unless told.
        cut_point: State that BTR keeps: after the attention of the cut layer, or after the whole layer.
        precision: Of the projections of bits (btr_kernels.prepare_weight).
        device: cpu, cuda, or cuda with a number.
        dtype: Of the weights; a CPU reads float32.
        repeats: Alternating rounds measured, after one that warms up.
        threads: Threads of torch; its own setting unless told.
        seed: Seed of the weights.
    """
    from ..benchmark.report import format_table, save_plot, save_sweep_plot
    from ..benchmark.run import run_benchmark

    for name, file in (("plot", plot), ("sweep_plot", sweep_plot)):
        if file is not None and file.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"{name} must end in .png, .svg or .pdf, got {file}")
    for file in (json, plot, sweep_plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{file}: its directory does not exist")
    settings = BenchmarkSettings(
        shape=shape,
        passages=passages,
        passage_length=passage_length,
        query_length=query_length,
        new_tokens=new_tokens,
        preset=preset,
        keep_offline=keep_offline,
        keep_joint=keep_joint,
        keep_decoder=keep_decoder,
        similarity=similarity,
        readers=readers,
        cut_point=cut_point,
        precision=precision,
        device=device,
        dtype=dtype,
        sweep=sweep or sweep_plot is not None,
        repeats=repeats,
        threads=threads,
        seed=seed,
    )
    report = run_benchmark(settings, passages_file)
    print(format_table(report))
    if json is not None:
        from json import dumps

        json.write_text(dumps(report, indent=2) + "\n")
    if plot is not None:
        save_plot(report, plot)
    if sweep_plot is not None:
        save_sweep_plot(report, sweep_plot)
