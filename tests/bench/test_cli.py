"""`python -m btr_kernels.bench` as users start it."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from btr_kernels.bench import CASES, cli, machine
from btr_kernels.bench.cases import bits


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "btr_kernels.bench", *arguments], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def quick_pack(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "report.json"
    options = ("--quick", "--ops", "pack_bits", "--seconds-per-case", "0.05", "--backend", "reference")
    done = run(*options, "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done, json.loads(path.read_text())


def test_quick_run_of_one_operator(quick_pack):
    done, saved = quick_pack
    expected = [case.name for case in CASES if case.quick and case.operator == "pack_bits"]
    assert [row["name"] for row in saved["results"]] == expected
    assert all(name in done.stdout for name in expected)
    assert done.stderr.count("\n") == len(expected), "one progress line a case where stderr is no terminal"
    assert done.stderr.count("s left)") == len(expected)
    assert saved["complete"] is True
    assert saved["environment"]["backend"] == "reference"
    assert {limit["name"] for limit in saved["limits"]} >= {"multiply-adds", "read, main memory", "write, main memory"}


def test_the_command_of_a_row_repeats_it(quick_pack):
    _, saved = quick_pack
    for row in saved["results"]:
        words = shlex.split(row["command"])
        options = cli.parser().parse_args(words[words.index("btr_kernels.bench") + 1 :])
        assert options.cases == [row["name"]]
        assert (options.threads, options.clock, options.backend) == ((1,), "cpu", "reference")
        assert options.seconds_per_case == 0.05


def test_list_prints_the_names(capsys):
    assert cli.main(["--list", "--ops", "merge_bits"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names == [case.name for case in CASES if case.operator == "merge_bits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "pack"], "invalid choice: 'pack'"),
        (["--cases", "no such row"], "--cases: no row is named 'no such row'"),
        (["--ops", "pack_bits", "--cases", CASES[-1].name], "no row matches"),
        (["--threads", "0"], "invalid list of thread counts value: '0'"),
        (["--threads", "1,1"], "invalid list of thread counts value: '1,1'"),
        (["--threads", "1,x"], "invalid list of thread counts value: '1,x'"),
        (["--suite", "targets", "--ops", "prepare_weight"], "no row matches"),
        (["--seconds-per-case", "-1"], "invalid positive float value: '-1'"),
        (["--backend", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_bad_options_are_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_backend_that_cannot_run_says_why(capsys, monkeypatch):
    # By its full name: the package attribute `backends` is the function.
    cuda = importlib.import_module("btr_kernels.backends.cuda")
    monkeypatch.setattr(cuda, "why_not", lambda: "there is no GPU")
    with pytest.raises(SystemExit):
        cli.main(["--backend", "cuda", "--ops", "pack_bits"])
    assert "--backend: backend 'cuda' cannot run here: there is no GPU" in capsys.readouterr().err


def test_a_backend_for_other_devices_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(importlib.import_module("btr_kernels.backends.cuda"), "why_not", lambda: None)
    with pytest.raises(SystemExit):
        cli.main(["--backend", "cuda", "--ops", "pack_bits"])
    assert "the rows are CPU tensors, and backend 'cuda' takes cuda tensors" in capsys.readouterr().err


def test_commands_carry_the_environment_that_changes_results(monkeypatch):
    monkeypatch.setenv("BTR_ISA", "portable")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    for name in ("BTR_BACKEND", *machine.PEER_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    assert cli._program()[:3] == ["BTR_ISA=portable", "OMP_WAIT_POLICY=passive", "python"]
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert cli._program()[2:4] == ["OPENBLAS_CORETYPE=Haswell", "python"]


def test_plots_without_matplotlib_say_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("btr_kernels.bench.plots.why_not", lambda: "matplotlib is not installed")
    with pytest.raises(SystemExit):
        cli.main(["--plots", "anywhere", "--ops", "pack_bits"])
    assert "--plots: matplotlib is not installed" in capsys.readouterr().err


def test_the_suite_of_targets_has_all_of_them_and_nothing_else(capsys):
    assert cli.main(["--list", "--suite", "targets"]) == 0
    assert capsys.readouterr().out.splitlines() == [case.name for case in CASES if case.targets]


@pytest.fixture
def small(monkeypatch):
    """The table cut down to two small rows, without the settings that would change the process of the tests."""
    cases = tuple(bits.pack(torch.float32, rows, 64, in_cache=True) for rows in (8, 16))
    monkeypatch.setattr(cli, "CASES", cases)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: False)
    monkeypatch.setattr("btr_kernels.bench.machine.cache_bytes", lambda: 1 << 16)
    return [case.name for case in cases]


def test_a_row_for_every_number_of_threads(small, tmp_path, capsys):
    path = tmp_path / "report.json"
    assert cli.main(["--threads", "1,2", "--seconds-per-case", "0.01", "--json", str(path)]) == 0
    saved = json.loads(path.read_text())
    assert [(row["name"], row["threads"], row["clock"]) for row in saved["results"]] == [
        (name, *rest) for name in small for rest in ((1, "cpu"), (2, "wall"))
    ]
    assert all((row["scaling_percent"] is None) == (row["threads"] == 1) for row in saved["results"])
    assert {limit["threads"] for limit in saved["limits"]} == {1, 2}
    assert "1 and 2 threads" in capsys.readouterr().out


def test_an_interrupted_run_leaves_the_rows_that_it_has(small, tmp_path, capsys, monkeypatch):
    path = tmp_path / "report.json"
    pool = cli.input_pool

    def second_is_interrupted(case):
        if case.name == small[1]:
            raise KeyboardInterrupt
        return pool(case)

    monkeypatch.setattr(cli, "input_pool", second_is_interrupted)
    assert cli.main(["--seconds-per-case", "0.01", "--json", str(path)]) == cli.INTERRUPTED
    saved = json.loads(path.read_text())
    assert saved["complete"] is False
    assert [row["name"] for row in saved["results"]] == small[:1]
    printed = capsys.readouterr()
    assert "interrupted after 1 rows" in printed.err
    assert "The run was interrupted: rows are missing." in printed.out


def test_a_wrong_result_fails_the_run(monkeypatch, capsys):
    wrong = replace(CASES[0], ours=lambda i: i.out.zero_())
    monkeypatch.setattr(cli, "CASES", (wrong,))
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: False)
    assert cli.main(["--quick", "--seconds-per-case", "0.01"]) == 1
    assert "wrong result: pack_bits" in capsys.readouterr().err
