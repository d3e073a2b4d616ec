"""The result file of `make gpu`, and its tables in Markdown, which are also the README's."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..case import Verdict
from ..report import duration, markdown_table, number, rate, verdict_cells
from .rows import Row
from .timing import Time

#: Raised whenever a key changes its meaning or goes away.
FORMAT = "gpu-1"

HEADER = ("row", "time", "GB/s", "Top/s", "% of limit", "spread", "against peers")
TARGETS_HEADER = ("row", "against", "measured", "target", "stretch", "verdict")


def limit(row: Row, limits: Mapping[str, float]) -> tuple[str, float]:
    """What bounds the row, and the seconds below which a call then cannot come."""
    memory = row.bytes / limits["copy"]
    compute = row.operations / limits[row.arithmetic]
    return ("copy bandwidth", memory) if memory >= compute else (f"{row.arithmetic} matmul", compute)


def row_result(
    row: Row, times: Mapping[str, Time], limits: Mapping[str, float], backends: Sequence[str] = ()
) -> dict[str, Any]:
    """A row of the result file; figures are None where there are none, with the reason in `errors`. `backends`: which
    of the times are not of peers but of ours on a backend."""
    ours = times["ours"].seconds
    bound, least = limit(row, limits)
    ratios = {
        name: time.seconds / ours if ours and time.seconds else None
        for name, time in times.items()
        if name not in ("ours", *backends)
    }
    return {
        "name": row.name,
        "seconds": {name: time.seconds for name, time in times.items()},
        "spread_percent": {name: time.spread for name, time in times.items()},
        "graph": {name: time.graph for name, time in times.items()},
        "errors": {name: time.error for name, time in times.items() if time.error},
        "ratios": ratios,
        "operators": list(row.operators),
        "kind": row.kind,
        "size": row.size,
        "backends": {name: times[name].seconds for name in backends},
        "bytes": row.bytes,
        "operations": row.operations,
        "limit": bound,
        "limit_seconds": least,
        "percent_of_limit": 100 * least / ours if ours else None,
        "targets": [verdict.as_dict() for verdict in _verdicts(row, ratios, least / ours if ours else None, bound)],
    }


def _verdicts(row: Row, ratios: Mapping[str, float | None], of_limit: float | None, bound: str) -> list[Verdict]:
    found = []
    for target in row.targets:
        if target.peers:
            best = [(ratios[name], name) for name in target.peers if ratios.get(name)]
            if best:
                value, name = min(best)
                found.append(Verdict(name, False, value, target.value, target.stretch))
        elif of_limit is not None:
            found.append(Verdict(bound, True, of_limit, target.value, target.stretch))
    return found


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as Markdown."""
    rows = report["rows"]
    failed = [name for name, check in report["checks"].items() if check["passed"] is False]
    open_checks = [f"{name} ({check['detail']})" for name, check in report["checks"].items() if check["passed"] is None]
    passed = sum(check["passed"] is True for check in report["checks"].values())
    measured = ", ".join(f"{name} {_limit_rate(name, value)}" for name, value in report["limits"].items())
    text = [
        f"`{report['command']}` on {report['gpu']}, {report['date']}: torch {report['versions']['torch']}, Triton "
        f"{report['versions']['triton']}, CUDA {report['versions']['cuda']}, backend {report['backend']}. Measured in "
        f"the same run: {measured}. {passed} of {len(report['checks'])} checks passed"
        + (f"; failed: {', '.join(failed)}" if failed else "")
        + (f"; not run: {', '.join(open_checks)}" if open_checks else "")
        + ".",
        "",
        markdown_table(HEADER, [_cells(row) for row in rows]),
    ]
    verdicts = [(row["name"], verdict) for row in rows for verdict in row["targets"]]
    if verdicts:
        met = sum(verdict["met"] for _, verdict in verdicts)
        text += ["", f"{met} of {len(verdicts)} targets met.", ""]
        text.append(markdown_table(TARGETS_HEADER, [(name, *verdict_cells(verdict)) for name, verdict in verdicts]))
    text += ["", *(_reader_line(name, reader) for name, reader in report["reader"].items())]
    failed_peers = [
        f"{name} in {row['name']} ({why})" for row in rows for name, why in row["errors"].items() if name != "ours"
    ]
    if failed_peers:
        text += ["", "Peers that failed: " + "; ".join(failed_peers)]
    if report["not_measured"]:
        text += ["", "Not measured: " + "; ".join(f"{name} ({why})" for name, why in report["not_measured"].items())]
    spent = ", ".join(f"{name} {part['seconds']:.0f} s" for name, part in report["time"].items())
    return [*text, "", f"Time: {spent}."]


def _limit_rate(name: str, value: float) -> str:
    return rate(value, "B/s") if name == "copy" else f"{value / 1e12:.0f} TFLOP/s"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ours = row["seconds"]["ours"]
    peers = ", ".join(f"{number(value)}x {name}" for name, value in row["ratios"].items() if value)
    if backends := [f"{name} {duration(seconds)}" for name, seconds in row["backends"].items() if seconds]:
        peers = f"{peers or '-'} ({', '.join(backends)})"
    if ours is None:
        return row["name"], "failed", "-", "-", "-", "-", row["errors"].get("ours", "")
    return (
        row["name"],
        duration(ours),
        f"{row['bytes'] / ours / 1e9:.0f}",
        f"{row['operations'] / ours / 1e12:.0f}" if row["operations"] else "-",
        f"{row['percent_of_limit']:.0f}%",
        f"{row['spread_percent']['ours']:.0f}%",
        peers or "-",
    )


def _reader_line(name: str, reader: Mapping[str, Any]) -> str:
    if "error" in reader:
        return f"`btr bench` {name}: {reader['error']}."
    speedups = ", ".join(f"{reader_name} {value:.2f}x" for reader_name, value in reader["speedup"].items())
    return f"`btr bench` {name} on {reader['device']}: {speedups} of Atlas."


def save(report: Mapping[str, Any], results: Path) -> Path:
    """Write `<results>/<gpu>/<date>.json`, replacing it in one step."""
    folder = results / re.sub(r"[^a-z0-9]+", "-", report["gpu"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^0-9T-]", "", report["date"]) + ".json")
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, delete=False) as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    os.replace(file.name, path)
    path.chmod(0o644)
    return path


def newest(results: Path) -> Path | None:
    """The result file of the last complete run, on whatever GPU."""
    found: list[tuple[str, Path]] = []
    for path in results.glob("*/*.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report.get("format") == FORMAT and report["complete"]:
            found.append((report["date"], path))
    return max(found)[1] if found else None


def passed(checks: Mapping[str, Mapping[str, object]]) -> bool:
    return all(check["passed"] is not False for check in checks.values())


def failures(checks: Mapping[str, Mapping[str, object]]) -> Sequence[str]:
    return [f"{name}:\n{check['detail']}" for name, check in checks.items() if check["passed"] is False]
