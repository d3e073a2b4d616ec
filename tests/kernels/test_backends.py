"""Choosing a backend: by block, decorator, environment; what cannot run says why; results come from who was asked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import btr_kernels as bk

from .implementations import Implementation, implementations, native

CPU = [i for i in implementations() if i.backend == "cpu"]
UNAVAILABLE = [status for status in bk.backends().values() if not status.available]


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_status_names_every_backend_and_a_reason_where_it_cannot_run():
    found = bk.backends()
    assert list(found) == ["reference", "cpu", "triton", "cuda"]
    assert found["reference"].available
    for name, status in found.items():
        assert status.name == name and bool(status.reason) != status.available and status.devices


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "refernce", None, 3])
def test_unknown_backend_is_a_value_error_that_lists_the_known(name):
    with pytest.raises(ValueError, match="^backend: expected one of reference, cpu, triton, cuda, auto, got "):
        bk.use_backend(name)


@pytest.mark.skipif(not UNAVAILABLE, reason="every backend runs here")
def test_backend_that_cannot_run_says_why_and_changes_nothing():
    for status in UNAVAILABLE:
        with pytest.raises(RuntimeError, match=f"^backend '{status.name}' cannot run here: ") as raised:
            bk.use_backend(status.name)
        assert status.reason in str(raised.value)
    assert bk.current_backend() == "auto"


def test_blocks_nest_and_end_with_exceptions():
    assert bk.current_backend() == "auto"
    block = bk.use_backend("reference")
    with pytest.raises(KeyError), block, bk.use_backend("auto"), block:
        assert bk.current_backend() == "reference"
        raise KeyError
    assert bk.current_backend() == "auto"


def test_decorated_function_runs_on_the_backend():
    @bk.use_backend("reference")
    def chosen(depth):
        return [bk.current_backend(), *(chosen(depth - 1) if depth else ())]

    assert chosen(2) == ["reference"] * 3
    assert bk.current_backend() == "auto"


def test_one_block_object_serves_several_threads():
    block, barrier, seen = bk.use_backend("reference"), threading.Barrier(2), []

    def work():
        with block:
            barrier.wait(10)
            seen.append(bk.current_backend())
            barrier.wait(10)
        seen.append(bk.current_backend())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["auto", "auto", "reference", "reference"]


def test_choice_holds_for_one_thread_only():
    seen = []
    with bk.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(bk.current_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_operator_really_runs_on_the_backend_asked_for(monkeypatch):
    module = sys.modules["btr_kernels.backends"]
    kernels = {}
    for name in ("reference", "cpu") if CPU else ("reference",):
        with bk.use_backend(name):
            kernels[name] = module.resolve("pack_bits", torch.device("cpu"))
    assert len(set(kernels.values())) == len(kernels)
    assert module.resolve("pack_bits", torch.device("cpu")) is kernels["cpu" if CPU else "reference"]


def test_backend_refuses_tensors_of_other_devices(monkeypatch):
    module = sys.modules["btr_kernels.backends"]
    for device in ("cuda", "xpu"):
        with bk.use_backend("cpu" if CPU else "reference"):
            if device == "cuda" and not CPU:
                continue
            with pytest.raises(ValueError, match=f"^device: backend .* takes tensors on .*, got {device}"):
                module.resolve("pack_bits", torch.device(device))


@pytest.mark.parametrize("name", ["reference", *(["cpu"] if CPU else [])])
def test_environment_variable_chooses_the_default(name):
    done = python("import btr_kernels as bk; print(bk.current_backend())", BTR_BACKEND=name)
    assert done.stdout.strip() == name, done.stderr


def test_unknown_environment_variable_is_an_error_when_an_operator_runs():
    done = python("import torch, btr_kernels as bk; bk.pack_bits(torch.ones(3))", BTR_BACKEND="fastest")
    assert done.returncode == 1
    assert "ValueError: backend: expected one of reference, cpu, triton, cuda, auto, got 'fastest'" in done.stderr


@pytest.mark.skipif(not UNAVAILABLE, reason="every backend runs here")
def test_environment_variable_naming_a_backend_that_cannot_run_says_why():
    status = UNAVAILABLE[0]
    done = python("import torch, btr_kernels as bk; bk.pack_bits(torch.ones(3))", BTR_BACKEND=status.name)
    assert done.returncode == 1
    assert f"RuntimeError: backend '{status.name}' cannot run here: {status.reason}" in done.stderr


# Instruction sets


@pytest.mark.skipif(not CPU, reason="no cpu backend")
class TestInstructionSets:
    def test_portable_is_always_there_and_the_best_is_used_by_default(self):
        assert native().isas()[0] == "portable"
        done = python("from btr_kernels import _C; print(_C.isa() == _C.isas()[-1])", BTR_ISA="")
        assert done.stdout.strip() == "True", done.stderr

    @pytest.mark.parametrize("isa", [i.isa for i in CPU])
    def test_environment_variable_forces_one(self, isa):
        done = python("from btr_kernels import _C; print(_C.isa())", BTR_ISA=isa)
        assert done.stdout.strip() == isa, done.stderr

    def test_unknown_one_is_refused_and_the_message_lists_those_that_run(self):
        before = native().isa()
        with pytest.raises(ValueError, match="portable.*got 'avx9000'"):
            native().set_isa("avx9000")
        assert native().isa() == before

    def test_unknown_environment_variable_is_an_error_not_a_crash(self):
        code = "import torch, btr_kernels as bk\ntry:\n    bk.pack_bits(torch.ones(3))\nexcept Exception as e: print(e)"
        done = python(code, BTR_ISA="avx9000")
        assert done.returncode == 0, done.stderr
        assert "avx9000" in done.stdout


def test_implementations_have_readable_names():
    assert str(Implementation("cpu", "avx2")) == "cpu-avx2" and str(Implementation("reference")) == "reference"
