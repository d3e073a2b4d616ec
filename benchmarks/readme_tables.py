"""Writes the measured tables of README.md from result files: no figure there is typed by hand.

    python benchmarks/readme_tables.py            # README.md from benchmarks/results/
    python benchmarks/readme_tables.py --check    # exit code 1 if README.md differs from that

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a file below benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from btr_kernels.bench.cases import CASES
from btr_kernels.bench.report import duration, number, summary
from btr_reader.stages import STAGES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_TABLE = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    marks = ["---", *["--:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, marks, *rows)]


def kernels_table(report: dict) -> list[str]:
    header = ["case", "time", "vs PyTorch", "vs best peer", "% of limit", "spread"]

    def row(result: dict) -> list[str]:
        peer = "-"
        if result["ratio_to_best_peer"] is not None:
            peer = f"{number(result['ratio_to_best_peer'])}x {result['best_peer']}"
        return [
            result["name"],
            duration(result["seconds"]["ours"][report["clock"]]),
            f"{number(result['ratio_to_baseline'])}x",
            peer,
            f"{result['percent_of_limit']:.0f}%",
            f"{result['spread_percent']:.0f}%",
        ]

    shown = {case.name for case in CASES if case.quick}
    rows = {result["name"]: row(result) for result in report["results"]}
    limits = "; ".join(
        f"{limit['name']} {number(limit['rate'] / 1e9)} {'GB/s' if limit['unit'] == 'B/s' else 'Gop/s'}"
        for limit in report["limits"]
    )
    return [
        f"`{report['command']}` on {summary(report['environment'])}. Limits measured in the same run: {limits}.",
        "",
        *markdown(header, [cells for name, cells in rows.items() if name in shown]),
        "",
        f"<details><summary>All {len(rows)} rows</summary>",
        "",
        *markdown(header, list(rows.values())),
        "",
        "</details>",
    ]


def reader_table(report: dict) -> list[str]:
    settings, keep = report["settings"], report["settings"]["keep"]
    header = ["reader", "queries/s", "speed-up", *(f"{stage.replace('_', ' ')} ms" for stage in STAGES), "total ms"]
    rows = [
        [
            name,
            f"{reader['queries_per_second']:.3f}",
            f"{report['speedup'].get(name, 1.0):.2f}x",
            *(f"{1000 * reader['stages'][stage]:.0f}" for stage in STAGES),
            f"{1000 * reader['seconds']:.0f}",
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


def table(name: str) -> str:
    path = RESULTS / name
    if not path.is_file():
        return "Not measured.\n"
    report = json.loads(path.read_text(encoding="utf-8"))
    lines = reader_table(report) if "readers" in report else kernels_table(report)
    return "\n".join([*lines, "", f"From `{path.relative_to(ROOT)}`.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if README.md is out of date")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    fresh = _TABLE.sub(lambda match: match[1] + table(match["name"]) + match[3], text)
    if arguments.check and fresh != text:
        print("README.md differs from benchmarks/results/: run python benchmarks/readme_tables.py", file=sys.stderr)
        return 1
    if not arguments.check:
        readme.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
