"""The rounds of the benchmark, and the report of what they took."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch

import btr_kernels
from btr_kernels.env import cpu_model

from ..stages import STAGES
from .contenders import QUERIES, Contender, Field
from .memory import peak_memory
from .settings import READERS, SWEEP, BenchmarkSettings

Sample = tuple[float, dict[str, float]]


def run_benchmark(
    settings: BenchmarkSettings, passages_file: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Measures and returns the report (see `btr bench --json`).

    The readers have random weights of the true shape and read real text: a passages file in Atlas' format, or the
    reference topics that ship with Python. States that DeFormer and BTR keep are made beforehand and not timed.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads_before)
    try:
        with TemporaryDirectory(prefix="btr-bench-") as scratch:
            return _report(Field(settings, passages_file, Path(scratch), progress))
    finally:
        torch.set_num_threads(threads_before)


def _report(field: Field) -> dict[str, Any]:
    settings = field.settings
    on_cpu = torch.device(settings.device).type == "cpu"
    names = [name for name in READERS if name in settings.readers and (on_cpu or READERS[name].linears == "float")]
    contenders = [field.contender(name, settings.compression) for name in names]
    rounds = _measure(field, contenders, "rounds")
    readers = {
        contender.name: {**_summary(samples), **_costs(field, contender)}
        for contender, samples in zip(contenders, rounds, strict=True)
    }
    atlas = rounds[0]
    report = {
        "shape": settings.shape,
        "device": device_name(settings.device),
        "settings": {
            **asdict(settings),
            "threads": torch.get_num_threads(),
            "corpus": field.corpus,
            "keep": {name: getattr(settings.compression, name) for name in ("offline", "joint", "decoder")},
            "cut_layer": field.reader.settings.cut_layer,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "backend": btr_kernels.current_backend(),
        },
        "readers": readers,
        "speedup": {name: readers["atlas"]["seconds"] / readers[name]["seconds"] for name in names[1:]},
        "speedup_by_round": {
            name: _paired(atlas, samples) for name, samples in zip(names[1:], rounds[1:], strict=True)
        },
    }
    if settings.sweep:
        report["sweep"] = _sweep(field, contenders[0])
    return report


def _sweep(field: Field, atlas: Contender) -> list[dict[str, Any]]:
    """BTR at several shares of kept tokens, in rounds of their own with Atlas."""
    contenders = [atlas, *(field.contender("btr", compression) for compression in SWEEP)]
    first, *others = _measure(field, contenders, "sweep")
    everything = contenders[1].memory_tokens(field.questions[0])
    return [
        {
            "keep": {name: getattr(contender.engine.compression, name) for name in ("offline", "joint", "decoder")},
            "memory_tokens": contender.memory_tokens(field.questions[0]) / everything,
            "seconds": statistics.median(seconds for seconds, _ in samples),
            "speedup": _paired(first, samples)["median"],
        }
        for contender, samples in zip(contenders[1:], others, strict=True)
    ]


def _measure(field: Field, contenders: Sequence[Contender], description: str) -> list[list[Sample]]:
    """The samples of every contender, one a round; a first round only warms up."""
    settings = field.settings
    rounds: list[list[Sample]] = [[] for _ in contenders]
    order = list(range(len(contenders)))
    with field.bar(description, (settings.repeats + 1) * len(contenders)) as bar:
        for number in range(-1, settings.repeats):
            question = field.questions[number % QUERIES]
            for index in order:
                bar.set_postfix_str(contenders[index].name)
                sample = contenders[index].read(question, settings.new_tokens)
                if number >= 0:
                    rounds[index].append(sample)
                bar.update()
            # The order turns with the rounds: no contender always runs after the same one.
            order.append(order.pop(0))
    return rounds


def _summary(samples: list[Sample]) -> dict[str, Any]:
    totals = [seconds for seconds, _ in samples]
    median = statistics.median(totals)
    return {
        "queries_per_second": 1 / median,
        "seconds": median,
        "latency": {f"p{p}": float(numpy.percentile(totals, p)) for p in (50, 90, 99)},
        "spread": {"minimum": min(totals), "maximum": max(totals), "rounds": len(totals)},
        "stages": {stage: statistics.median(stages[stage] for _, stages in samples) for stage in STAGES},
    }


def _costs(field: Field, contender: Contender) -> dict[str, Any]:
    """What a reader takes besides time: memory of a question, tokens of the decoder's memory."""
    question, new_tokens = field.questions[0], field.settings.new_tokens
    return {
        "peak_memory": peak_memory(lambda: contender.read(question, new_tokens), field.reader.device),
        "memory_tokens": contender.memory_tokens(question),
    }


def _paired(atlas: list[Sample], other: list[Sample]) -> dict[str, float]:
    """Spread of the speed-up over Atlas within each round: what is left of a machine's noise after alternation."""
    ratios = [slow / fast for (slow, _), (fast, _) in zip(atlas, other, strict=True)]
    return {"minimum": min(ratios), "median": statistics.median(ratios), "maximum": max(ratios)}


def device_name(device: str) -> str:
    """The GPU's name, or the processor's and the number of cores that this process may use."""
    if torch.device(device).type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu: {cpu_model()}, {cores} cores"
