"""`python -m btr_kernels.env`."""

import json
import os
import subprocess
import sys

import pytest

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
        assert (f"runs: {status.operators[0]}, " in line) if status.available else (status.reason in line)


def test_json_is_the_same_report():
    report = json.loads(run("--json").stdout)
    assert report["backends"].keys() == backends().keys()
    assert report["native"]["loaded"] == collect()["native"]["loaded"]


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("BTR_ISA", "x", "'x'"),
        ("BTR_BACKEND", "x", "'x'"),
        ("BTR_TUNING", "x=1", "'x'"),
        ("BTR_TUNING", "matmul.block_tokens=many", "'many'"),
    ],
)
def test_an_impossible_choice_is_one_line_on_stderr_and_the_rest_is_still_reported(variable, value, named):
    result = run(**{variable: value})
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert named in result.stderr
    lines = result.stdout.splitlines()
    assert f"{variable}={value}" in lines
    assert any(line.startswith("Instruction sets") for line in lines) == ("build" in collect()["native"])
    for name in backends():
        assert any(line.startswith(f"  {name}") for line in lines)


def test_instruction_sets_say_which_is_used_and_what_the_others_lack():
    report = collect()
    if not report["native"]["loaded"]:
        pytest.skip(report["native"]["reason"])
    lines = [line.split(maxsplit=1) for line in render(report).splitlines() if line.startswith("  ")]
    state = {line[0]: line[1] for line in lines}
    for name, lacks in report["native"]["instruction_sets"].items():
        in_use = name == report["native"]["instruction_set"]
        assert state[name] == (f"cannot run: this machine lacks {lacks}" if lacks else "in use" if in_use else "runs")


def test_thresholds_show_their_value_and_an_overridden_default():
    report = json.loads(run("--json", BTR_TUNING="matmul.dot_max_tokens=9").stdout)
    if not report["native"]["loaded"]:
        pytest.skip(report["native"]["reason"])
    default = report["native"]["thresholds"]["matmul.dot_max_tokens"]["default"]
    text = render(report)
    assert f"  matmul.dot_max_tokens = 9 (default {default}): unpack_matmul " in text
    assert "  matmul.block_tokens = " in text


def test_missing_library_is_reported_not_raised(monkeypatch):
    from btr_kernels.backends import native

    monkeypatch.setattr(native, "load", lambda: (None, "the compiled library is missing"))
    report = collect()
    assert not report["native"]["loaded"]
    assert "not loaded: the compiled library is missing" in render(report)
    assert "cannot run: the compiled library is missing" in render(report)
