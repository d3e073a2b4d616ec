"""The parts of `make gpu` around its rows, without a GPU: their time, other packages, `btr bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from btr_kernels.bench.gpu import __main__ as command
from btr_kernels.bench.gpu import packages
from btr_kernels.bench.gpu.schedule import PARTS, Schedule

CPU = torch.device("cpu")
LIMITS = {"copy": 4e12, "bfloat16": 8e14, "float32": 5e13, "int8": 16e14, "float8_e4m3fn": 16e14}


def test_each_part_ends_in_time_for_the_later_ones():
    now = [1000.0]
    schedule = Schedule(1.0, lambda: now[0], {"first": 10.0, "second": 20.0})  # of 60 seconds
    with schedule.part("first"):
        assert schedule.left() == 20
        now[0] += 5
        assert schedule.left() == 15
    with schedule.part("second"):
        assert schedule.left() == 55, "what the first part left"
        now[0] += 70
        assert schedule.left() == -15
    assert schedule.parts == {"first": {"seconds": 5, "until": 20}, "second": {"seconds": 70, "until": 60}}


def test_a_part_that_fails_is_noted_too():
    schedule = Schedule(1.0, lambda: 0.0)
    with pytest.raises(RuntimeError), schedule.part("rows"):
        raise RuntimeError
    assert list(schedule.parts) == ["rows"]


def test_the_parts_are_the_eight_minutes():
    assert sum(PARTS.values()) == 480


def fake(name: str, **contents) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents)
    return module


class FakeLinear:
    """gemlite's layer, as its documentation has it."""

    def __init__(self, bits, *, group_size, in_features, out_features, input_dtype, output_dtype, acc_dtype):
        assert bits == 1 and group_size == in_features
        self.shape = (out_features, in_features)

    def pack(self, values, scales, zeros, bias):
        assert values.dtype == torch.uint8 and values.shape == self.shape
        self.weight = (values.float() - zeros.float()) * scales.float()

    def __call__(self, x):
        assert x.dtype == torch.float16
        return (x.float() @ self.weight.T).half()


class FakeMatmul:
    """BitBLAS' operator."""

    def __init__(self, config):
        assert (config.A_dtype, config.W_dtype) == ("float16", "uint1")
        self.config = config

    def transform_weight(self, weight):
        assert weight.shape == (self.config.N, self.config.K)
        return weight

    def __call__(self, a, w):
        assert a.shape == (self.config.M, self.config.K)
        return (a.float() @ w.float().T).half()


def fake_bmm(a, b, a_scale, b_scale, dtype, out):
    assert b.stride(1) == 1, "column-major"
    return out.copy_((a.float() @ b.float()) * a_scale * b_scale)


def fake_packbits(x, bitorder):
    assert x.dim() == 1 and bitorder == "little"
    return (x.view(-1, 8) << torch.arange(8)).sum(1).to(torch.uint8)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(packages, "_SIZES", ((32, 24, 64), (8, 24, 64)))
    dtypes = SimpleNamespace(FP16=0, FP32=1)
    monkeypatch.setitem(sys.modules, "gemlite", fake("gemlite"))
    monkeypatch.setitem(sys.modules, "gemlite.core", fake("gemlite.core", DType=dtypes, GemLiteLinear=FakeLinear))
    monkeypatch.setitem(sys.modules, "bitblas", fake("bitblas", Matmul=FakeMatmul, MatmulConfig=SimpleNamespace))
    quantization = SimpleNamespace(packbits=fake_packbits)
    monkeypatch.setitem(sys.modules, "flashinfer", fake("flashinfer", bmm_fp8=fake_bmm, quantization=quantization))
    # float8 is prepared on GPUs only.
    monkeypatch.setattr("btr_kernels.matmul._has_fp8", lambda device: True)


@pytest.mark.parametrize("package", packages.PACKAGES)
def test_the_peer_computes_the_row(installed, package):
    found = packages.PACKAGES[package]()
    assert len(found) == 2 and len({row.name for row in found}) == 2
    for row in found:
        inputs = row.make(torch.Generator().manual_seed(1), CPU)
        row.verify(inputs)
        ((_, run),) = row.peers.items()
        run(inputs)  # compares itself with the reference
        run(inputs)


def test_a_peer_that_computes_something_else_is_no_peer(installed, monkeypatch):
    monkeypatch.setattr(FakeLinear, "__call__", lambda self, x: -(x.float() @ self.weight.T).half())
    row = packages.PACKAGES["gemlite"]()[0]
    ((_, run),) = row.peers.items()
    with pytest.raises(ValueError, match="gemlite 1-bit gives another result"):
        run(row.make(torch.Generator().manual_seed(1), CPU))


def ends(code: int, out: str = "", err: str = ""):
    return lambda command, **kwargs: subprocess.CompletedProcess(command, code, out, err)


def out_of_time(command, timeout, **kwargs):
    raise subprocess.TimeoutExpired(command, timeout)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (out_of_time, ([], "out of time")),
        (ends(1, "", "Traceback\nImportError: no libcuda"), ([], "failed: ImportError: no libcuda")),
        (ends(-11), ([], "failed: no message")),
        (ends(0, 'chatter\n{"rows": [{"name": "a"}], "errors": []}'), ([{"name": "a"}], "")),
        (ends(0, '{"rows": [], "errors": ["a: RuntimeError: why", "b"]}'), ([], "a: RuntimeError: why; b")),
    ],
)
def test_what_a_package_does_to_its_process_stays_there(monkeypatch, installed, process, expected):
    monkeypatch.setattr(packages, "find_spec", lambda name: name)
    monkeypatch.setattr(packages.subprocess, "run", process)
    assert packages.run("gemlite", LIMITS, "auto", 5.0) == expected


def test_packages_that_are_not_there_are_not_started(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    monkeypatch.setattr(packages.subprocess, "run", lambda *args, **kwargs: pytest.fail("started"))
    assert packages.run("bitblas", LIMITS, "auto", 5.0) == ([], "not installed")


def test_the_process_of_a_package_takes_its_arguments():
    arguments = ["gemlite", "--limits", json.dumps(LIMITS), "--backend", "auto"]
    done = subprocess.run(
        [sys.executable, "-m", "btr_kernels.bench.gpu.packages", *arguments], capture_output=True, text=True
    )
    assert "unrecognized arguments" not in done.stderr and "invalid" not in done.stderr


def test_the_reader_is_asked_for_what_it_takes(tmp_path):
    """The options of `btr bench`, as its own parser reads them: a tiny reader on no device at all."""
    pytest.importorskip("btr_reader")
    pytest.importorskip("tyro")
    options = [*command.READER, "--shape", "tiny", "--device", "nowhere", "--json", str(tmp_path / "report.json")]
    done = subprocess.run([sys.executable, "-m", "btr_reader", "bench", *options], capture_output=True, text=True)
    assert done.returncode != 0
    assert "device" in done.stderr and "usage" not in done.stderr.lower()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_build_that_takes_too_long_ends_with_all_its_compilers(tmp_path):
    (tmp_path / "setup.py").write_text(
        "import subprocess, pathlib, time\n"
        "compiler = subprocess.Popen(['sleep', '60'])\n"
        "pathlib.Path('pid').write_text(str(compiler.pid))\n"
        "time.sleep(60)\n"
    )
    assert command.build(tmp_path, 3.0).startswith("not built: out of time")
    compiler = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    # Gone, or waiting for someone to ask how it ended.
    assert not compiler.exists() or compiler.read_text().split()[2] == "Z"
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
    assert command.build(tmp_path, 60.0) == "not built: no compiler"


@pytest.mark.parametrize(
    ("process", "error"),
    [
        (out_of_time, "not run: out of time"),
        (ends(1, "", "x\nImportError: tyro"), "failed: ImportError: tyro"),
    ],
)
def test_a_reader_that_does_not_run_says_why(monkeypatch, tmp_path, process, error):
    monkeypatch.setattr(command.subprocess, "run", process)
    assert command.read(tmp_path, "base", 1.0) == {"error": error}


def test_the_reader_s_report_is_read(monkeypatch, tmp_path):
    def bench(command, **kwargs):
        Path(command[command.index("--json") + 1]).write_text('{"speedup": {"btr": 3.0}}')
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(command.subprocess, "run", bench)
    assert command.read(tmp_path, "base", 1.0) == {"speedup": {"btr": 3.0}}
