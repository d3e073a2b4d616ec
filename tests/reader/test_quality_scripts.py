"""The scripts behind the figures of quality, where nothing is learned: what they measure, and resumption."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from btr_reader.jsonl import write_jsonl
from btr_reader.settings import SHAPES
from btr_reader.training.facts import fact_corpus, fact_questions

from .helpers import TINY

SCRIPTS = Path(__file__).parent.parent.parent / "benchmarks"


def script(name: str):
    spec = spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_tradeoff_goes_on_where_it_was_stopped(tiny_reader, tmp_path, monkeypatch, capsys):
    tradeoff = script("quality_tradeoff")
    monkeypatch.setattr(tradeoff, "STORES", ((1.0, 1.0), (0.5, 0.5)))
    monkeypatch.setattr(tradeoff, "TIMED_QUESTIONS", 2)
    questions = list(fact_questions("mmlu", 5, 2))
    write_jsonl(tmp_path / "q.jsonl", questions)
    write_jsonl(tmp_path / "p.jsonl", fact_corpus(questions))
    replace(tiny_reader(), residual_scale=torch.ones(24)).save(tmp_path / "reader")
    results, plot = tmp_path / "r.json", tmp_path / "r.png"
    arguments = ["x", tmp_path / "p.jsonl", "--questions", tmp_path / "q.jsonl", "--task", "mmlu", "--reader"]
    arguments += [f"tiny={tmp_path / 'reader'}", "--passage-length", 20, "--json", results, "--plot", plot]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    tradeoff.main()
    whole = json.loads(results.read_text())
    assert [(p["keep"], p["bits"], p["preset"]) for p in whole["points"]] == [
        (keep, bits, preset) for keep, bits in ((1.0, 1.0), (0.5, 0.5)) for preset in ("none", "paper", "aggressive")
    ]
    assert all(0 <= p["accuracy"] <= 100 and p["speedup"] > 0 for p in whole["points"])
    plain, compressed = whole["points"][0], whole["points"][3]
    assert plain["state_bytes_per_token"] == 3  # 24 channels
    # Half of the tokens, rounded up in each passage, at 12 bits: two bytes.
    assert 1 <= compressed["state_bytes_per_token"] < 1.2
    assert plot.stat().st_size > 10_000
    marked = [{**point, "accuracy": -1.0} for point in whole["points"][:4]]
    results.write_text(json.dumps({**whole, "points": marked}))
    tradeoff.main()
    again = json.loads(results.read_text())["points"]
    assert again[:4] == marked and [p["accuracy"] for p in again[4:]] == [p["accuracy"] for p in whole["points"][4:]]
    (tmp_path / "q.jsonl").write_text((tmp_path / "q.jsonl").read_text().replace("mmlu-0-0-0", "other"))
    with pytest.raises(SystemExit, match="of other readers, questions or settings"):
        tradeoff.main()


def test_fact_lookup_runs_and_is_not_run_again(tmp_path, monkeypatch, capsys):
    facts = script("quality_facts")
    monkeypatch.setattr(facts, "QUESTIONS", 4)
    monkeypatch.setattr(facts, "TRAINING", (*facts.TRAINING, "--evaluate-every", 1))
    arguments = ["x", "--work", tmp_path / "w", "--tasks", "mmlu", "--json", tmp_path / "r.json"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--train", "8", "--steps", "2"])
    facts.main()
    first = json.loads((tmp_path / "r.json").read_text())
    assert list(first["tasks"]) == ["mmlu"]
    students = first["tasks"]["mmlu"]["students"]
    assert students["btr"]["stored_bits_per_token"] == 64
    # 32 bits of seven tenths of the tokens, rounded up in each passage.
    assert 0.7 * 32 <= students["btr, compressed"]["stored_bits_per_token"] < 0.8 * 32
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(f"| mmlu | {first['tasks']['mmlu']['teacher']['score']:.1f}% |")
    assert printed.count("btr train teacher") == 3 and printed.count("btr eval") == 3
    facts.main()
    assert json.loads((tmp_path / "r.json").read_text()) == first
    assert "btr train" not in capsys.readouterr().out


def test_parameters_are_those_of_the_model(tiny_reader):
    estimates = script("recipe_estimates")
    model = tiny_reader().model
    assert estimates.parameters(TINY) == sum(parameter.numel() for parameter in model.parameters())
    assert estimates.parameters(SHAPES["base"]) == 247_577_856  # google/t5-v1_1-base


@pytest.mark.parametrize(
    ("name", "results", "page"),
    [
        ("recipe_estimates", "recipe.json", "docs/recipe.md"),
        ("quality_facts", "facts.json", "benchmarks/notes/facts.md"),
    ],
)
def test_pages_show_what_was_measured(name, results, page):
    results = SCRIPTS / "results" / "quality" / results
    if not results.exists():
        pytest.skip("nothing was measured")
    table = script(name).table(json.loads(results.read_text()))
    assert table in (SCRIPTS.parent / page).read_text(encoding="utf-8")
