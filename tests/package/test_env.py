"""`python -m btr_kernels.env`."""

import json
import os
import subprocess
import sys

from btr_kernels import backends
from btr_kernels.env import collect, render


def run(*arguments, **environment):
    command = [sys.executable, "-m", "btr_kernels.env", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_report_names_every_backend_and_why_one_cannot_run():
    report = collect()
    text = render(report)
    for name, status in backends().items():
        assert report["backends"][name]["available"] == status.available
        line = next(line for line in text.splitlines() if line.strip().startswith(name))
        assert ("runs: pack_bits" in line) if status.available else (status.reason in line)


def test_json_is_the_same_report():
    report = json.loads(run("--json").stdout)
    assert report["backends"].keys() == backends().keys()
    assert report["native"]["loaded"] == collect()["native"]["loaded"]


def test_impossible_choices_are_one_line_and_exit_code_1():
    for variable, value in (("BTR_ISA", "x"), ("BTR_BACKEND", "x")):
        result = run(**{variable: value})
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "'x'" in result.stderr


def test_missing_library_is_reported_not_raised(monkeypatch):
    from btr_kernels.backends import native

    monkeypatch.setattr(native, "load", lambda: (None, "the compiled library is missing"))
    report = collect()
    assert not report["native"]["loaded"]
    assert "not loaded: the compiled library is missing" in render(report)
    assert "cannot run: the compiled library is missing" in render(report)
