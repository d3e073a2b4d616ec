"""`make gpu` without a GPU: its rows at small sizes, its timing, its checks, its report, and what it says."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from btr_kernels import reference
from btr_kernels.backends import measured
from btr_kernels.bench.case import Target
from btr_kernels.bench.gpu import __main__ as command
from btr_kernels.bench.gpu import checks, measure, packages, report, rows
from btr_kernels.bench.gpu.rows import merging
from btr_kernels.bench.gpu.timing import MIN_ROUNDS, Time, alternate
from btr_kernels.ops.define import backends

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LIMITS = {"copy": 4e12, "bfloat16": 8e14, "float32": 5e13, "int8": 16e14, "float8_e4m3fn": 16e14}


def small_rows() -> list[rows.Row]:
    """One of each kind in `all_rows`."""
    bf16, fp32 = torch.bfloat16, torch.float32
    plain = [rows.project("plain", dtype, 80, 48, 64, ()) for dtype in (bf16, fp32)]
    prepared = [rows.project(p, t, 80, 48, 64, ()) for p, t in (("int8", bf16), ("fast", fp32))]
    few = rows.project("int8", bf16, 8, 48, 64, (Target(1.2, 1.8, (rows.CUBLAS,)),))
    streaming = [rows.pack(bf16, 32, 64), rows.unpack(fp32, 32, 64), rows.normalised("layer", bf16, 32, 64)]
    masked = [rows.masked(operator, 20, 64, 16, 9) for operator in ("compress_bits", "expand_bits")]
    gradients = rows.project_gradients(bf16, 40, 48, 64)
    return [
        *plain,
        *prepared,
        few,
        rows.geglu("plain", 24, 40, 64),
        rows.geglu("int8", 24, 40, 64),
        gradients,
        *streaming,
        *masked,
        rows.matched(3, 16, 64, 8, False),
        rows.distances(20, 30, 64),
        rows.nearest(20, 30, 64, 3),
        rows.averaged(bf16, 3, 16, 64),
        rows.restored(bf16, 20, 64),
    ]


@pytest.mark.parametrize("row", small_rows(), ids=lambda row: row.name)
def test_a_row_says_what_auto_sees_of_its_calls(row, monkeypatch):
    seen = []
    resolve = backends.resolve

    def watched(operator, device):
        kernel = resolve(operator, device)

        def run(*args):
            seen.append(
                (
                    operator,
                    str(measured.kind_of(operator, args)).removeprefix("torch."),
                    measured.size_of(operator, args),
                )
            )
            kernel(*args)

        return run

    monkeypatch.setattr(backends, "resolve", watched)
    row.ours(row.make(torch.Generator().manual_seed(1), CPU))
    assert seen == [(operator, row.kind, row.size) for operator in row.operators]


@pytest.mark.parametrize("row", small_rows(), ids=lambda row: row.name)
def test_a_row_is_right_and_its_peers_run(row):
    inputs = row.make(torch.Generator().manual_seed(1), CPU)
    row.verify(inputs)
    for run in row.peers.values():
        run(inputs)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_rows_run_on_the_triton_backend():
    """In the interpreter, which has to be chosen before Triton is imported."""
    program = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "import btr_kernels; from test_gpu import small_rows\n"
        "with btr_kernels.use_backend('triton'):\n"
        "    for row in small_rows(): row.verify(row.make(torch.Generator().manual_seed(1), torch.device('cpu')))\n"
        "print('all right')"
    )
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "all right"


def test_the_table_has_every_row_of_the_targets():
    found = rows.all_rows()
    assert len({row.name for row in found}) == len(found)
    for row in found:
        for target in row.targets:
            assert set(target.peers) <= set(row.peers), f"{row.name} has a target against nobody"
            assert target.stretch > target.value
    for start in ("unpack_matmul plain bf", "unpack_matmul int8", "unpack_matmul fp8", "unpack_matmul plain float32"):
        assert any(row.name.startswith(start) and row.targets for row in found), start
    for start in ("pack_bits", "unpack_bits", "binarize", "match_tokens"):
        assert any(row.name.startswith(start) and row.targets for row in found), start


def test_peers_merge_as_we_do():
    """Where no distances tie, one round by the peer leaves the same tokens."""
    row = rows.matched(4, 32, 512, 20, False)
    inputs = row.make(torch.Generator().manual_seed(2), CPU)
    _, bits, _ = row.ours(inputs)
    signs = reference.signs(bits, 512)
    peer = merging.match_and_merge(inputs.unpacked, 20).float()
    assert float((signs == peer).float().mean()) > 0.9  # votes of two that differ, and ties


def test_a_wrong_result_is_an_error():
    row = rows.pack(torch.float32, 4, 64)
    inputs = row.make(torch.Generator().manual_seed(1), CPU)
    wrong = rows.Row(row.name, row.make, lambda i: row.ours(i) ^ 1, row.expected, {}, row.bytes)
    with pytest.raises(AssertionError, match=r"pack_bits float32, 4 x 64: error"):
        wrong.verify(inputs)


def test_inputs_exceed_the_cache():
    row = rows.pack(torch.float32, 64, 512)
    assert rows.sets_past(50 * row.bytes, row, 10**12) == 128
    assert rows.sets_past(10 * row.bytes, row, 10**12) == 40
    assert rows.sets_past(10 * row.bytes, row, 100 * row.bytes) == 5
    assert rows.sets_past(0, row, 0) == 1


class FakeGpu:
    """A call takes what it returns; nothing that raises can be prepared. The clock moves with what is timed."""

    def __init__(self):
        self.now = 0.0

    def prepared(self, run):
        run()
        return run, True

    def seconds(self, run, times):
        self.spent = 0.0
        for _ in range(times):
            run()
        self.now += self.spent
        return self.spent

    def taking(self, seconds):
        def run(inputs):
            self.spent = getattr(self, "spent", 0.0) + seconds * inputs

        return run


def test_contenders_are_timed_per_call():
    gpu = FakeGpu()
    contenders = {"ours": gpu.taking(1e-4), "peer": gpu.taking(3e-4)}
    times = alternate(contenders, [1.0, 1.0, 1.0, 1.0], gpu, 0.0, lambda: gpu.now)
    assert times["ours"].seconds == pytest.approx(1e-4)
    assert times["peer"].seconds == pytest.approx(3e-4)
    assert times["peer"].spread == pytest.approx(0.0)


def test_a_peer_that_fails_leaves_its_error():
    def fails(inputs):
        raise RuntimeError("no such kernel\nmore")

    gpu = FakeGpu()
    times = alternate({"ours": gpu.taking(1e-4), "peer": fails}, [1.0], gpu, 0.0, lambda: gpu.now)
    assert times["peer"].error == "RuntimeError: no such kernel"
    assert times["peer"].seconds is None
    assert times["ours"].seconds == pytest.approx(1e-4)


def test_rounds_end_with_the_time():
    gpu = FakeGpu()
    started = []
    contenders = {"ours": lambda i: (started.append(i), gpu.taking(1.0)(i))}
    alternate(contenders, [1.0], gpu, 0.0, lambda: gpu.now)
    assert len(started) == 1 + 2 + MIN_ROUNDS


ROW = rows.Row(
    "a row", None, None, None, {}, bytes=4 * 10**9, targets=(Target(2, 3, ("slow", "fast")), Target(0.85, 0.95))
)


def row_result(**times):
    return report.row_result(ROW, {"ours": Time(2e-3, 1.0), "slow": Time(8e-3), "fast": Time(5e-3), **times}, LIMITS)


def test_a_row_is_judged_against_its_best_peer_and_its_limit():
    result = row_result()
    assert result["limit"] == "copy bandwidth"
    assert result["percent_of_limit"] == pytest.approx(50)
    to_peer, to_limit = result["targets"]
    assert (to_peer["against"], to_peer["value"], to_peer["met"]) == ("fast", 2.5, True)
    assert (to_limit["against"], to_limit["met"]) == ("copy bandwidth", False)


def test_times_of_our_backends_are_not_peers():
    times = {"ours": Time(2e-3), "slow": Time(8e-3), "triton": Time(3e-3), "cuda": Time(2e-3)}
    result = report.row_result(ROW, times, LIMITS, ["triton", "cuda"])
    assert result["backends"] == {"triton": 3e-3, "cuda": 2e-3} and list(result["ratios"]) == ["slow"]
    assert report._cells(result)[-1] == "4.00x slow (triton 3.00 ms, cuda 2.00 ms)"


def test_the_limit_of_arithmetic():
    row = rows.project("plain", torch.float32, 4096, 4096, 4096, ())
    bound, seconds = report.limit(row, LIMITS)
    assert bound == "float32 matmul"
    assert seconds == pytest.approx(2 * 4096**3 / 5e13)


def test_a_row_that_failed_has_no_verdict():
    result = row_result(ours=Time(error="RuntimeError: broken"))
    assert result["targets"] == [] and result["ratios"] == {"slow": None, "fast": None}
    assert result["errors"] == {"ours": "RuntimeError: broken"}
    json.dumps(result)


@pytest.fixture
def result() -> dict:
    return {
        "format": report.FORMAT, "complete": True, "command": "make gpu", "date": "2026-01-02T03:04:05+00:00",
        "gpu": "NVIDIA Made-Up 9", "versions": {"torch": "2.11", "triton": "3.6", "cuda": "13.0"}, "backend": "auto",
        "checks": {"good": {"passed": True, "detail": ""}, "slow": {"passed": None, "detail": "out of time"}},
        "limits": LIMITS, "rows": [row_result(fast=Time(error="gone")), row_result(ours=Time(error="broken"))],
        "reader": {"base": {"error": "not run"}, "large": {"device": "it", "speedup": {"btr": 5.0}}},
        "not_measured": {"fp8": "too old"}, "time": {"build": {"seconds": 12.3, "until": 60.0}},
    }  # fmt: skip


def test_the_report_as_text(result):
    text = "\n".join(report.lines(result))
    assert "`make gpu` on NVIDIA Made-Up 9, 2026-01-02T03:04:05+00:00: torch 2.11, Triton 3.6, CUDA 13.0" in text
    assert "copy 4000 GB/s, bfloat16 800 TFLOP/s" in text
    assert "1 of 2 checks passed; not run: slow (out of time)." in text
    assert "| a row | 2.00 ms | 2000 | - | 50% | 1% | 4.00x slow |" in text
    assert "| a row | failed |" in text
    assert "1 of 2 targets met." in text
    assert "| a row | slow | 4.00x | 2.00x | 3.00x | stretch met |" in text
    assert "Peers that failed: fast in a row (gone)" in text and "Time: build 12 s." in text
    assert "`btr bench` large on it: btr 5.00x of Atlas." in text
    assert "Not measured: fp8 (too old)" in text


def test_results_are_kept_by_gpu_and_date_and_the_newest_is_found(result, tmp_path):
    assert report.newest(tmp_path) is None
    first = report.save(result, tmp_path)
    assert first == tmp_path / "nvidia-made-up-9" / "2026-01-02T0304050000.json"
    later = report.save({**result, "gpu": "Other", "date": "2026-02-01T00:00:00+00:00"}, tmp_path)
    report.save({**result, "date": "2026-03-01T00:00:00+00:00", "complete": False}, tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "kernels.json").write_text('{"format": 2}')
    assert report.newest(tmp_path) == later
    assert json.loads(first.read_text())["rows"][0]["name"] == "a row"
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".json", ".json"]


def checked(*outcomes: tuple, seconds: float = 100.0):
    """Checks whose commands end as told, in order; and the commands."""
    commands, left = [], list(outcomes)

    def run(command, env, limit):
        commands.append((list(command), env, limit))
        return left.pop(0)

    return checks.Checks(ROOT, 5, lambda: seconds, run), commands


GOOD = '{"pack_bits": {"failures": {"33": null, "huge": "skip: no memory"}}}'
BAD = '{"pack_bits": {"failures": {"33": "wrong"}}}'


@pytest.mark.parametrize(
    ("outcome", "passed", "detail"),
    [
        ((0, f"noise\n{GOOD}\n=== ERROR SUMMARY: 0 errors"), True, ""),
        ((0, BAD), False, "pack_bits, 33 channels: wrong"),
        ((0, "{}"), False, "nothing was checked"),
        ((0, ""), False, "the worker printed no report"),
        ((1, "Traceback"), False, "Traceback"),
        ((None, ""), None, "out of time"),
    ],
)
def test_what_a_worker_finds(outcome, passed, detail):
    found, commands = checked(outcome)
    found.results_agree("triton", ["pack_bits"], 2)
    assert found.results == {"triton pack_bits": {"passed": passed, "detail": detail}}
    ((command, env, limit),) = commands
    assert command[1:5] == ["-m", "gpu.check_kernels", "triton", "cuda"]
    assert command[-2:] == ["--operators", "pack_bits"] and "--seed" in command
    assert limit == 100 and env["BTR_TUNE"] == "0"
    assert report.passed(found.results) == (passed is not False)


def test_launches_that_fail_are_named():
    found, _ = checked((0, '{"captured": {"triton-pack_bits-0": null, "triton-pack_bits-1": "lost"}}'))
    found.launches_and_memory([])
    assert found.results["streams, graphs and devices"]["detail"] == "captured, triton-pack_bits-1: lost"
    assert report.failures(found.results) == ["streams, graphs and devices:\ncaptured, triton-pack_bits-1: lost"]


def test_the_sanitizer_runs_where_it_is_found(monkeypatch):
    names = [f"triton under compute-sanitizer {tool}" for tool in ("memcheck", "racecheck")]
    monkeypatch.setattr(checks, "sanitizer", lambda: None)
    found, commands = checked((0, "{}"))
    found.launches_and_memory(["triton"])
    assert all(found.results[name]["passed"] is None for name in names) and len(commands) == 1
    monkeypatch.setattr(checks, "sanitizer", lambda: "/bin/compute-sanitizer")
    found, commands = checked(*[(99, "Invalid __global__ read")] * 3)
    found.launches_and_memory(["triton"])
    assert all(found.results[name] == {"passed": False, "detail": "Invalid __global__ read"} for name in names)
    sanitized = [entry for entry in commands if entry[0][0] == "/bin/compute-sanitizer"]
    assert sorted(command[2] for command, _, _ in sanitized) == ["memcheck", "racecheck"]
    assert all(env["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" and limit == 100 for _, env, limit in sanitized)
    assert set(checks.SANITIZED) <= set(checks.CHANNELS), "or it would compile"


def test_commands_end_with_their_time():
    sleep = [sys.executable, "-c", "import time; time.sleep(30)"]
    assert checks.run(sleep, dict(os.environ), 0.1) == (None, "")
    code, output = checks.run([sys.executable, "-c", "import sys; sys.exit('why')"], dict(os.environ), 60)
    assert code == 1 and "why" in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert command.main([]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_the_workers_it_starts_take_these_arguments():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "gpu.check_kernels", "--help"], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert {"--operators", "--channels", "--seed"} <= set(done.stdout.replace(",", " ").split())


class CpuAsGpu:
    def prepared(self, run):
        run()
        return run, False

    def seconds(self, run, times):
        run()
        return 1e-3 * times


@pytest.fixture
def pretend_gpu(monkeypatch):
    """The whole command on the CPU: other rows, other clocks, no workers."""
    properties = SimpleNamespace(name="NVIDIA Made-Up 9", major=8, minor=0, total_memory=1 << 30, L2_cache_size=1000)
    monkeypatch.setattr(command, "why_not", lambda: None)
    monkeypatch.setattr(command, "build", lambda root, seconds: "not built: a test")
    monkeypatch.setattr(command, "current_device", lambda: CPU)
    monkeypatch.setattr(command, "limits", lambda device: LIMITS)
    monkeypatch.setattr(measure, "Cuda", CpuAsGpu)
    monkeypatch.setattr(measure, "ROW_SECONDS", 0.0)
    monkeypatch.setattr(packages, "run", lambda package, limits, backend, seconds: ([], "not installed"))
    monkeypatch.setattr(command, "read", lambda root, shape, seconds: {"error": f"not run: {seconds > 0}"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(command, "all_rows", lambda: [*small_rows(), rows.project("fp8", torch.bfloat16, 8, 8, 8, ())])
    monkeypatch.setattr(checks.Checks, "_worker", lambda *args: pytest.fail("a worker was started"))


def test_the_whole_command(pretend_gpu, tmp_path, capsys):
    assert command.main(["--results", str(tmp_path), "--no-checks"]) == 0
    (path,) = tmp_path.glob("nvidia-made-up-9/*.json")
    found = json.loads(path.read_text())
    assert len(found["rows"]) == len(small_rows())
    assert found["not_measured"] == {
        "unpack_matmul fp8 bfloat16, 8 x 8 -> 8": "needs compute capability 8.9",
        **dict.fromkeys(packages.PACKAGES, "not installed"),
    }
    assert set(found["reader"]) == {"base", "large"}
    assert list(found["time"]) == ["build", "checks", "rows", "packages", "reader"]
    assert not found["complete"], "nothing was checked"
    assert all(row["seconds"]["ours"] and not row["errors"] for row in found["rows"])
    assert "| pack_bits bfloat16, 32 x 64 |" in capsys.readouterr().out


def test_the_whole_command_with_its_checks(pretend_gpu, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(checks.Checks, "_worker", lambda self, name, *rest, **more: started.append(name))
    monkeypatch.setattr(checks, "sanitizer", lambda: "/bin/compute-sanitizer")
    assert command.main(["--results", str(tmp_path)]) == 0
    assert started == ["streams, graphs and devices"], "no backend is there to be checked"
    (path,) = tmp_path.glob("nvidia-made-up-9/*.json")
    assert json.loads(path.read_text())["complete"]


def test_some_rows_alone(pretend_gpu, tmp_path):
    assert command.main(["--results", str(tmp_path), "--no-checks", "--rows", "pack_bits bf"]) == 0
    (path,) = tmp_path.glob("*/*.json")
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == ["pack_bits bfloat16, 32 x 64"]
    assert found["reader"] == {} and list(found["time"]) == ["build", "checks", "rows"] and not found["complete"]


def test_what_there_is_no_time_for_is_named(pretend_gpu, tmp_path):
    arguments = argparse.Namespace(minutes=0.1, backend="auto", results=tmp_path, rows=None, no_checks=True)
    found = command.prove(arguments)
    assert not found["rows"] and "out of time" in found["not_measured"].values()


def test_a_wrong_row_fails_the_command(pretend_gpu, monkeypatch, tmp_path, capsys):
    row = rows.pack(torch.float32, 4, 64)
    wrong = rows.Row(row.name, row.make, lambda i: row.ours(i) ^ 1, row.expected, {}, row.bytes)
    monkeypatch.setattr(command, "all_rows", lambda: [wrong])
    assert command.main(["--results", str(tmp_path), "--no-checks"]) == 1
    assert "FAILED: pack_bits float32, 4 x 64" in capsys.readouterr().err
