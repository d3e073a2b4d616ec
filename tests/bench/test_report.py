"""Limits, the report's table and JSON, and plots, from results with known figures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import btr_kernels
from btr_kernels.bench import Limit, Limits, Peer, Report, Result, Settings, Target, measure, plots
from btr_kernels.bench.cases import bits, matmul
from btr_kernels.bench.machine import cache_bytes, environment, thread_count
from btr_kernels.bench.measure import Time
from btr_kernels.bench.report import FORMAT, HEADER, TARGETS_HEADER, duration, number, verdict_cells


def limits_of(threads: int) -> list[Limit]:
    memory = [Limit(f"{kind}, main memory", threads, 10e9, "B/s", "made up") for kind in ("read", "write", "copy")]
    return [*memory, Limit("multiply-adds", threads, 50e9, "op/s", "made up")]


#: One for the fastest of its peers, one for the limit.
TARGETS = (Target(3.0, 4.0, ("slow", "fast")), Target(0.45, 0.6))
CASE = replace(
    bits.pack(torch.float32, 1000, 1024),
    targets=TARGETS,
    peers={"slow": Peer(lambda i: None), "fast": Peer(lambda i: None)},
)


def result(**changes) -> Result:
    values = dict(
        case=CASE,
        threads=1,
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
    two_threads = result(threads=2, clock="wall", ours=Time(wall=6e-3, wall_spread=1.0, cpu=12e-3, cpu_spread=1.0))
    no_peer = result(case=bits.unpack(torch.float32, 1000, 1024), peers={})
    results = [result(), two_threads, no_peer]
    limits = [*limits_of(1), *limits_of(2)]
    return Report("the command", environment((1, 2)), limits, results, {"other": "no kernel"}, complete=True)


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
    assert set(saved) == {"format", "complete", "command", "environment", "limits", "results", "skipped"}
    assert saved["format"] == FORMAT
    assert saved["complete"] is True
    assert saved["environment"]["threads"] == [1, 2]
    assert {"torch", "numpy", "cpu", "threads", "instruction_set", "backend"} <= set(saved["environment"])
    assert set(saved["limits"][0]) == {"name", "threads", "rate", "unit", "how"}
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
    assert (first["threads"], first["scaling_percent"]) == (1, None)
    two = saved["results"][1]
    assert (two["threads"], two["clock"], two["scaling_percent"]) == (2, "wall", pytest.approx(75.0))
    assert saved["results"][2]["best_peer"] is None


def test_targets_are_judged_on_one_thread(report):
    ratio, bandwidth = (verdict.as_dict() for verdict in report.results[0].verdicts)
    assert ratio == {
        "against": "fast", "of_limit": False, "value": pytest.approx(2.5), "target": 3.0, "stretch": 4.0,
        "met": False, "short_percent": pytest.approx(100 / 6),
    }  # fmt: skip
    assert (bandwidth["against"], bandwidth["of_limit"]) == ("read, main memory", True)
    assert (bandwidth["value"], bandwidth["met"], bandwidth["short_percent"]) == (pytest.approx(0.5), True, 0.0)
    assert verdict_cells(ratio) == ("fast", "2.50x", "3.00x", "4.00x", "short by 17%")
    assert verdict_cells(bandwidth) == ("read, main memory", "50%", "45%", "60%", "met")
    assert verdict_cells({**bandwidth, "value": 0.7})[-1] == "stretch met"
    assert report.results[1].verdicts == []


def test_a_target_is_not_judged_without_its_peers():
    assert [verdict.of_limit for verdict in result(peers={}).verdicts] == [True]
    assert result(peers={"slow": Time(0.0, 0.0, 7e-3, 0.0)}).verdicts[0].against == "slow"


def test_the_old_file_stays_until_the_new_one_is_whole(report, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    report.save(path)
    before = path.read_text()

    def full_disk(self, text):
        with open(self, "w") as file:
            file.write(text[:100])
        raise OSError("no space left")

    monkeypatch.setattr(type(path), "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        report.save(path)
    assert path.read_text() == before


def test_markdown_table(report):
    lines = report.markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert tuple(cells[0]) == HEADER
    assert all(len(line) == len(HEADER) for line in cells)
    assert set("".join(cells[1])) <= set("-:")
    row = dict(zip(HEADER, cells[2], strict=True))
    assert row["case"] == "pack_bits float32 1000x1024"
    assert (row["time"], row["vs baseline"]) == ("1.00 ms", "8.00x")
    assert (row["vs best peer"], row["best peer"]) == ("2.50x", "fast")
    assert (row["% of limit"], row["limit"], row["spread"]) == ("50%", "read, main memory", "4%")
    assert (row["threads"], row["scaling"]) == ("1", "-")
    two = dict(zip(HEADER, cells[3], strict=True))
    assert (two["threads"], two["time"], two["scaling"]) == ("2", "6.00 ms", "75%")
    assert cells[4][HEADER.index("vs best peer")] == "-"
    assert lines[5] == ""
    assert lines[6] == "Targets, one thread: 1 of 3 met"
    assert tuple(cell.strip() for cell in lines[8].strip("|").split("|")) == TARGETS_HEADER
    assert lines[10] == "| pack_bits float32 1000x1024 | fast | 2.50x | 3.00x | 4.00x | short by 17% |"


def test_text_names_what_is_missing_and_how_to_repeat(report):
    text = report.text()
    assert "Peer not measured: absent (absent is not installed)." in text
    assert "Skipped: other (no kernel)." in text
    assert "Limit multiply-adds, 2 threads: 50.0 Gop/s (made up)." in text
    assert "CPU time of all threads on 1 thread, wall time on 2 threads" in text
    assert "rows are missing" not in text
    assert text.endswith("Command: the command")
    report.complete = False
    assert "The run was interrupted: rows are missing." in report.text()


@pytest.mark.parametrize(
    ("value", "text"), [(0.126, "0.13"), (9.998, "10.0"), (12.34, "12.3"), (99.96, "100"), (1234.5, "1234")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_durations():
    assert [duration(s) for s in (1.5e-6, 2e-3, 3.0)] == ["1.50 us", "2.00 ms", "3.00 s"]


def test_limit_is_the_longer_of_memory_and_arithmetic():
    limits = Limits(1)
    known = limits_of(1)
    limits._measured = {limit.name: limit for limit in known}
    memory_bound, compute_bound = bits.pack(torch.float32, 1000, 1024), matmul.matmul(512, 512, 512, "plain")
    assert limits.of(memory_bound) == (known[0], pytest.approx(1000 * 4224 / 10e9))
    assert limits.of(compute_bound) == (known[3], pytest.approx(2 * 512**3 / 50e9))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_limits_of_a_case_in_cache_are_measured_at_its_size(threads, native, monkeypatch):
    if not native:
        monkeypatch.setattr("btr_kernels.bench.machine.instruction_set", lambda: None)
    case = bits.pack(torch.float32, 64, 1024, in_cache=True)
    limits = Limits(threads)
    for kind in ("read", "write", "copy"):
        limit = limits.bandwidth(kind, case)
        assert limit.rate > 0
        assert limit.threads == threads
        assert limit.name == f"{kind}, 0.3 MiB in cache"
        assert ("torch." in limit.how) is not (native and btr_kernels.backends()["cpu"].available)
    assert limits.arithmetic().rate > 0
    assert len(limits.measured()) == 4


def test_a_limit_that_is_measured_again_keeps_the_better():
    limits, rates = Limits(1), iter([5.0, 3.0, 8.0])
    limits._multiply_adds = lambda: (next(rates), "made up")
    assert limits.arithmetic().rate == 5.0
    limits.measure_again()
    assert limits.arithmetic().rate == 5.0
    limits.measure_again()
    assert limits.arithmetic().rate == 8.0


def test_cache_size_is_known():
    assert cache_bytes() >= 1 << 18


def test_measure_returns_a_full_row():
    case = bits.pack(torch.float32, 64, 256, in_cache=True)
    row = measure(case, Limits(1), Settings(0.01, command=("run",), environment="here"))
    assert row.sets == 1 and row.rounds >= 1
    assert row.vs_baseline > 0 and row.percent_of_limit > 0
    assert row.command == "run --cases 'pack_bits float32 64x256 in cache'"


def test_measure_on_two_threads():
    with thread_count(2):
        row = measure(bits.pack(torch.float32, 64, 256), Limits(2), Settings(0.01, clock="wall"))
    assert (row.threads, row.clock, row.verdicts) == (2, "wall", [])
    assert row.seconds(row.ours) == row.ours.wall


@pytest.mark.parametrize("repeats", [1, plots.MAX_ROWS])
def test_plots(report, tmp_path, repeats):
    pytest.importorskip("matplotlib")
    report.results *= repeats
    paths = plots.save(report, tmp_path / "plots")
    assert [path.name for path in paths] == ["ratios.png", "roofline.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
