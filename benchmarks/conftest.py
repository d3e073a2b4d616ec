"""Adds to the JSON of pytest-benchmark what only a whole group tells: rates and ratios of ours."""

from __future__ import annotations

from collections import defaultdict


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    groups = defaultdict(dict)
    for entry in output_json["benchmarks"]:
        groups[entry["group"]][entry["extra_info"]["contender"]] = entry
    for group in groups.values():
        for entry in group.values():
            seconds, extra = entry["stats"]["median"], entry["extra_info"]
            extra["bytes_per_second"] = extra["bytes"] / seconds
            extra["operations_per_second"] = extra["operations"] / seconds
        if "ours" in group:
            ours = group["ours"]
            others = {name: entry["stats"]["median"] for name, entry in group.items() if name != "ours"}
            ours["extra_info"]["ratios"] = {name: seconds / ours["stats"]["median"] for name, seconds in others.items()}
