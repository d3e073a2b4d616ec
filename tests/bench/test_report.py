"""Limits, the report's table and JSON, and plots, from results with known figures."""

from __future__ import annotations

import json

import pytest
import torch

from btr_kernels.bench import Limit, Limits, Report, Result, Settings, measure, plots
from btr_kernels.bench import cases as rows
from btr_kernels.bench.machine import cache_bytes, environment
from btr_kernels.bench.measure import Time
from btr_kernels.bench.report import FORMAT, HEADER, duration, number

LIMITS = [Limit(f"{kind}, main memory", 10e9, "B/s", "made up") for kind in ("read", "write", "copy")]
LIMITS.append(Limit("matmul", 50e9, "op/s", "made up"))


def result(**changes) -> Result:
    case = rows.pack(torch.float32, 1000, 1024)
    values = dict(
        case=case,
        clock="cpu",
        ours=Time(wall=9e-3, wall_spread=50.0, cpu=1e-3, cpu_spread=4.0),
        baseline=Time(wall=9e-3, wall_spread=50.0, cpu=8e-3, cpu_spread=3.0),
        peers={"slow": Time(9e-3, 0.0, 7e-3, 0.0), "fast": Time(9e-3, 0.0, 2.5e-3, 0.0)},
        missing={"absent": "absent is not installed"},
        rounds=7,
        sets=3,
        limit="read, main memory",
        limit_seconds=0.5e-3,
        command="python -m btr_kernels.bench --cases 'the row'",
        environment="here",
    )
    return Result(**{**values, **changes})


@pytest.fixture
def report() -> Report:
    no_peer = result(case=rows.unpack(1000, 1024), peers={})
    return Report("the command", "cpu", environment(1), LIMITS, [result(), no_peer], {"other": "no kernel"})


def test_ratios_are_of_the_chosen_clock():
    by_cpu, by_wall = result(), result(clock="wall")
    assert by_cpu.vs_baseline == pytest.approx(8.0)
    assert (by_cpu.best_peer, by_cpu.vs_best_peer) == ("fast", pytest.approx(2.5))
    assert by_cpu.percent_of_limit == pytest.approx(50.0)
    assert by_cpu.bytes_per_second == pytest.approx(1000 * (4096 + 128) / 1e-3)
    assert by_wall.vs_baseline == pytest.approx(1.0)
    assert (by_cpu.spread, by_wall.spread) == (4.0, 50.0)


def test_json_layout(report, tmp_path):
    path = tmp_path / "deep" / "report.json"
    report.save(path)
    saved = json.loads(path.read_text())
    assert set(saved) == {"format", "command", "clock", "environment", "limits", "results", "skipped"}
    assert saved["format"] == FORMAT
    assert {"torch", "numpy", "cpu", "threads", "instruction_set", "backend"} <= set(saved["environment"])
    assert set(saved["limits"][0]) == {"name", "rate", "unit", "how"}
    first = saved["results"][0]
    assert first["bytes"] == {"read": 1000 * 4096, "written": 1000 * 128, "total": 1000 * 4224}
    assert first["operations"] == 1000 * 1024
    assert first["ratio_to_baseline"] == pytest.approx(8.0)
    assert (first["best_peer"], first["ratio_to_best_peer"]) == ("fast", pytest.approx(2.5))
    assert first["percent_of_limit"] == pytest.approx(50.0)
    assert first["spread_percent"] == 4.0
    assert first["seconds"]["ours"] == {"wall": 9e-3, "wall_spread": 50.0, "cpu": 1e-3, "cpu_spread": 4.0}
    assert set(first["seconds"]["peers"]) == {"slow", "fast"}
    assert first["missing_peers"] == {"absent": "absent is not installed"}
    assert first["command"].startswith("python -m btr_kernels.bench")
    assert first["environment"] == "here"
    assert saved["results"][1]["best_peer"] is None


def test_markdown_table(report):
    lines = report.markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert tuple(cells[0]) == HEADER
    assert all(len(line) == len(HEADER) for line in cells)
    assert set("".join(cells[1])) <= set("-:")
    row = dict(zip(HEADER, cells[2], strict=True))
    assert row["case"] == "pack_bits float32 1000x1024"
    assert (row["time"], row["vs baseline"]) == ("1.00 ms", "8.00x")
    assert (row["vs best peer"], row["best peer"]) == ("2.50x", "fast")
    assert (row["% of limit"], row["limit"], row["spread"]) == ("50%", "read, main memory", "4%")
    assert cells[3][HEADER.index("vs best peer")] == "-"
    assert lines[4] == ""


def test_text_names_what_is_missing_and_how_to_repeat(report):
    text = report.text()
    assert "Peer not measured: absent (absent is not installed)." in text
    assert "Skipped: other (no kernel)." in text
    assert "Limit matmul: 50.0 Gop/s (made up)." in text
    assert text.endswith("Command: the command")


@pytest.mark.parametrize(
    ("value", "text"), [(0.126, "0.13"), (9.998, "10.0"), (12.34, "12.3"), (99.96, "100"), (1234.5, "1234")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_durations():
    assert [duration(s) for s in (1.5e-6, 2e-3, 3.0)] == ["1.50 us", "2.00 ms", "3.00 s"]


def test_limit_is_the_longer_of_memory_and_arithmetic():
    limits = Limits(1, matmul_size=64)
    limits._measured = {limit.name: limit for limit in LIMITS}
    memory_bound, compute_bound = rows.pack(torch.float32, 1000, 1024), rows.matmul(512, 512, 512, "plain")
    assert limits.of(memory_bound) == (LIMITS[0], pytest.approx(1000 * 4224 / 10e9))
    assert limits.of(compute_bound) == (LIMITS[3], pytest.approx(2 * 512**3 / 50e9))


@pytest.mark.parametrize("threads", [1, 2])
def test_limits_of_a_case_in_cache_are_measured_at_its_size(threads):
    case = rows.pack(torch.float32, 64, 1024, in_cache=True)
    limits = Limits(threads, matmul_size=64)
    for kind in ("read", "write", "copy"):
        limit = limits.bandwidth(kind, case)
        assert limit.rate > 0
        assert limit.name == f"{kind}, 0.3 MiB in cache"
    assert limits.matmul().rate > 0
    assert len(limits.measured()) == 4


def test_cache_size_is_known():
    assert cache_bytes() >= 1 << 18


def test_measure_returns_a_full_row():
    case = rows.pack(torch.float32, 64, 256, in_cache=True)
    row = measure(case, Limits(1, matmul_size=64), Settings(0.01, command=("run",), environment="here"))
    assert row.sets == 1 and row.rounds >= 1
    assert row.vs_baseline > 0 and row.percent_of_limit > 0
    assert row.command == "run --cases 'pack_bits float32 64x256 in cache'"


@pytest.mark.parametrize("repeats", [1, plots.MAX_ROWS])
def test_plots(report, tmp_path, repeats):
    pytest.importorskip("matplotlib")
    report.results *= repeats
    paths = plots.save(report, tmp_path / "plots")
    assert [path.name for path in paths] == ["ratios.png", "roofline.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
