"""Puts what result files of `make gpu` found into the package, to be shipped with it.

    python -m btr_kernels.bench.gpu.ship benchmarks/results/<gpu>/<date>.json...

The faster backend of each row goes into `backends/measured.json`, from which `auto` chooses, and the configurations of
Triton kernels into `backends/triton/tuned.json`. Entries of the same GPU and operator are replaced. Both files are
package data: the next wheel holds them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...backends import measured
from .report import FORMAT

TUNED = Path(measured.__file__).parent / "triton" / "tuned.json"


def faster(report: Mapping[str, Any]) -> dict[str, dict[str, list[list]]]:
    """{operator: {kind: [[size, backend], ...]}} of the rows that ran on several backends.

    Rows of the same operator, kind and size are taken together, each by the ratio of its times.
    """
    ratios: dict[tuple, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in report["rows"]:
        times = {name: seconds for name, seconds in row.get("backends", {}).items() if seconds}
        if len(times) < 2:
            continue
        for operator in row["operators"]:
            for name, seconds in times.items():
                ratios[operator, row["kind"], row["size"]][name] += math.log(seconds)
    found: dict[str, dict[str, list[list]]] = {}
    for (operator, kind, size), of_backend in sorted(ratios.items()):
        best = min(of_backend, key=lambda name: of_backend[name])
        found.setdefault(operator, {}).setdefault(kind, []).append([size, best])
    return found


def ship(report: Mapping[str, Any], measured_file: Path, tuned_file: Path) -> None:
    """Raises ValueError for a result that is not complete or whose checks failed."""
    if report.get("format") != FORMAT:
        raise ValueError(f"expected a result file of format {FORMAT!r}, got {report.get('format')!r}")
    failed = [name for name, check in report["checks"].items() if check["passed"] is False]
    if not report["complete"] or failed:
        raise ValueError(f"expected a complete run without failures, got {', '.join(failed) or 'an incomplete one'}")
    for path, found in ((measured_file, faster(report)), (tuned_file, report.get("tuned", {}))):
        content = json.loads(path.read_text(encoding="utf-8"))
        content[report["gpu"]] = {**content.get(report["gpu"], {}), **found}
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="result files of make gpu, the newest last")
    for path in parser.parse_args(argv).results:
        try:
            ship(json.loads(path.read_text(encoding="utf-8")), measured.SHIPPED, TUNED)
        except (OSError, ValueError, KeyError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
        print(f"{path}: shipped in {measured.SHIPPED} and {TUNED}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
