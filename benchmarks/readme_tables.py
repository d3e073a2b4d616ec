"""Writes the measured tables of README.md and benchmarks/notes/README.md: no figure there is typed by hand.

    python benchmarks/readme_tables.py            # the pages from benchmarks/results/
    python benchmarks/readme_tables.py --check    # exit code 1 if a page differs from that

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, that of the targets between `<!-- targets: NAME -->`
and the same; NAME is a file below benchmarks/results/, or `gpu` for the newest that `make gpu` wrote there.

What stands in the way of a target that is missed is said in benchmarks/notes/shortfalls.json, {NAME: {sentence: [case
names]}}. Both ways of running fail if a missed target has no entry there, or if an entry belongs to no missed target.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from btr_kernels.bench import CASES
from btr_kernels.bench.gpu import report as gpu
from btr_kernels.bench.report import FORMAT, duration, number, rate, summary, verdict_cells
from btr_reader.stages import STAGES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHORTFALLS = ROOT / "benchmarks" / "notes" / "shortfalls.json"
PAGES = ("README.md", "benchmarks/notes/README.md")
_TABLE = re.compile(r"(<!-- (?P<kind>table|targets): (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Inconsistent(Exception):
    """The results and the explanations of missed targets do not fit together."""


#: Columns that hold text; the others are aligned to the right.
_TEXT = ("case", "reader", "against", "verdict", "what stands in the way")


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    marks = ["---" if title in _TEXT else "--:" for title in header]
    return ["| " + " | ".join(cells) + " |" for cells in (header, marks, *rows)]


def kernels_table(report: dict) -> list[str]:
    first, *more = report["environment"]["threads"]
    header = ["case", "time", "vs PyTorch", "vs best peer", "% of limit", "spread"]
    for threads in more:
        header += [f"{threads} threads", "scaling"]
    by_name: dict[str, dict[int, dict]] = {}
    for result in report["results"]:
        by_name.setdefault(result["name"], {})[result["threads"]] = result

    def time(result: dict) -> str:
        return duration(result["seconds"]["ours"][result["clock"]])

    def row(name: str, results: dict[int, dict]) -> list[str]:
        one, peer = results[first], "-"
        if one["ratio_to_best_peer"] is not None:
            peer = f"{number(one['ratio_to_best_peer'])}x {one['best_peer']}"
        cells = [name, time(one), f"{number(one['ratio_to_baseline'])}x", peer]
        cells += [f"{one['percent_of_limit']:.0f}%", f"{one['spread_percent']:.0f}%"]
        for threads in more:
            cells += [time(results[threads]), f"{results[threads]['scaling_percent']:.0f}%"]
        return cells

    shown = {case.name for case in CASES if case.quick}
    rows = {name: row(name, results) for name, results in by_name.items()}
    limits = "; ".join(
        f"{limit['name']} {rate(limit['rate'], limit['unit'])}"
        for limit in report["limits"]
        if limit["threads"] == first
    )
    return [
        f"`{report['command']}` on {summary(report['environment'])}. Limits of {first} thread, measured in the same "
        f"run: {limits}.",
        "",
        *markdown(header, [cells for name, cells in rows.items() if name in shown]),
        "",
        f"<details><summary>All {len(rows)} rows</summary>",
        "",
        *markdown(header, list(rows.values())),
        "",
        "</details>",
    ]


def targets_table(report: dict, name: str) -> list[str]:
    sentences = json.loads(SHORTFALLS.read_text(encoding="utf-8")).get(name, {})
    why = {case: sentence for sentence, cases in sentences.items() for case in cases}
    judged = [(result["name"], verdict) for result in report["results"] for verdict in result["targets"]]
    missed = {case for case, verdict in judged if not verdict["met"]}
    if unexplained := sorted(missed - set(why)):
        raise Inconsistent(f"{name}: missed targets that shortfalls.json does not explain: {', '.join(unexplained)}")
    if stale := sorted(set(why) - missed):
        raise Inconsistent(f"{name}: entries of shortfalls.json that belong to no missed target: {', '.join(stale)}")
    header = ["case", "against", "measured", "target", "stretch", "verdict", "what stands in the way"]
    rows = [[case, *verdict_cells(verdict), "" if verdict["met"] else why[case]] for case, verdict in judged]
    stretch = sum(verdict["value"] >= verdict["stretch"] for _, verdict in judged)
    met = sum(verdict["met"] for _, verdict in judged)
    return [f"{met} of {len(judged)} met, {stretch} of them at the stretch.", "", *markdown(header, rows)]


def reader_table(report: dict) -> list[str]:
    settings, keep = report["settings"], report["settings"]["keep"]
    header = ["reader", "queries/s", "speed-up", *(f"{stage.replace('_', ' ')} ms" for stage in STAGES), "total ms"]
    header += ["p90 ms", "peak MB", "decoder's tokens"]
    rows = [
        [
            name,
            f"{reader['queries_per_second']:.3f}",
            f"{report['speedup'].get(name, 1.0):.2f}x",
            *(f"{1000 * reader['stages'][stage]:.0f}" for stage in STAGES),
            f"{1000 * reader['seconds']:.0f}",
            f"{1000 * reader['latency']['p90']:.0f}",
            "-" if reader["peak_memory"] is None else f"{reader['peak_memory'] / 1e6:.0f}",
            f"{reader['memory_tokens']}",
        ]
        for name, reader in report["readers"].items()
    ]
    return [
        f"`btr bench --shape {report['shape']} --passages {settings['passages']} --passage-length "
        f"{settings['passage_length']} --new-tokens {settings['new_tokens']} --preset {settings['preset']}`: random "
        f"weights, text of {settings['corpus']}, {report['device']}, {settings['threads']} threads, torch "
        f"{settings['torch']}; medians of {settings['repeats']} alternating rounds. Kept tokens: {keep['offline']:.0%} "
        f"offline, {keep['joint']:.0%} in each joint layer, {keep['decoder']:.0%} of the rest to the decoder.",
        "",
        *markdown(header, rows),
    ]


def table(name: str, kind: str = "table") -> str:
    path = gpu.newest(RESULTS) if name == "gpu" else RESULTS / name
    if path is None or not path.is_file():
        return "Not measured.\n"
    report = json.loads(path.read_text(encoding="utf-8"))
    if name == "gpu":
        lines = gpu.lines(report)
    elif "readers" in report:
        lines = reader_table(report)
    elif report["format"] != FORMAT or not report["complete"]:
        raise Inconsistent(f"{name}: expected a complete result of format {FORMAT}")
    else:
        lines = kernels_table(report) if kind == "table" else targets_table(report, name)
    return "\n".join([*lines, "", f"From `{path.relative_to(ROOT)}`.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    arguments = parser.parse_args()
    outdated = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        try:
            fresh = _TABLE.sub(lambda match: match[1] + table(match["name"], match["kind"]) + match[4], text)
        except Inconsistent as error:
            print(error, file=sys.stderr)
            return 1
        if fresh != text:
            outdated.append(page)
            if not arguments.check:
                path.write_text(fresh, encoding="utf-8")
    if arguments.check and outdated:
        differ = " and ".join(outdated)
        print(f"{differ}: not what benchmarks/results/ says; run python benchmarks/readme_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
