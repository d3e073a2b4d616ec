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

from .extractive_helpers import questions, records, tiny_bert, write_passages
from .helpers import TINY, rows
from .retrieval_helpers import edit_json

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


@pytest.fixture
def extractive(tmp_path, monkeypatch):
    """The script with runs of two steps, and call(command, *arguments): on a tiny BERT and a few questions."""
    quality = script("extractive_quality")
    short = {"steps": 2, "batch_size": 4, "passage_length": 16, "evaluate_every": 1, "checkpoint_every": 2}
    for name in ("TEACHER", "STUDENT"):
        monkeypatch.setattr(quality, name, replace(getattr(quality, name), **short))
    half = quality.Row("BTR, half", changes={"masked_bits": 16, "centroids": True})
    monkeypatch.setattr(quality, "ROWS", (*quality.ROWS[:3], half))
    monkeypatch.setattr(quality, "RESULTS", tmp_path / "results" / "r.json")
    monkeypatch.setattr(quality, "NOTES", tmp_path / "notes.md")
    (tmp_path / "notes.md").write_text("before\n<!-- extractive -->\nold\n<!-- end -->\nafter\n")
    (tmp_path / "data").mkdir()
    write_passages(tmp_path / "data" / "passages.jsonl", questions(12))
    gold = [replace(e, passages=[p for p in e.passages if e.answers[0] in p.text.split()][:1]) for e in questions(12)]
    write_jsonl(tmp_path / "data" / "train.jsonl", records(gold[:8]))
    write_jsonl(tmp_path / "data" / "dev.jsonl", records(gold[2:]))
    model = tiny_bert(tmp_path / "bert")

    def call(command, *more):
        inputs = (tmp_path / "data", "--model", model, "--cut-layers", 1, "--steps", 2) if command == "run" else ()
        monkeypatch.setattr(sys, "argv", list(map(str, ("x", command, "--work", tmp_path / "w", *inputs, *more))))
        quality.main()

    return quality, call


def test_extractive_runs_are_reported(extractive, tmp_path):
    _, call = extractive
    with pytest.raises(SystemExit, match="the teacher is not done yet"):
        call("report")
    call("run", "--seeds", 0, 1, "--rows", "BTR, half", "BTR")
    call("run", "--rows", "DeFormer")
    call("report")
    # Every question is read with its own passage and another one.
    asked, own = rows(tmp_path / "w" / "dev.jsonl"), rows(tmp_path / "data" / "dev.jsonl")
    read = [[passage["id"] for passage in record["passages"]] for record in asked]
    assert [ids[0] for ids in read] == [record["passages"][0]["id"] for record in own]
    assert all(len(ids) == len(set(ids)) == 2 for ids in read)
    found = json.loads((tmp_path / "results" / "r.json").read_text())
    assert [(row["row"], row["cut_layer"], row["steps"], row["seeds"]) for row in found["rows"]] == [
        ("teacher", 0, 2, [0]), ("DeFormer", 1, 2, [0]), ("BTR", 1, 2, [0, 1]), ("BTR, half", 1, 2, [0, 1]),
    ]  # fmt: skip
    assert "bytes_per_token" not in found["rows"][0]
    passages = len({name for ids in read for name in ids})
    # 32 channels as floats, as bits, half of the bits.
    for row, states in zip(found["rows"][1:], (128, 4, 2), strict=True):
        runs = [run for run in found["runs"] if run["row"] == row["row"]]
        stored = runs[0]["store"]
        assert stored["passages"] == passages and stored["bytes_per_token"]["states"] == states
        total, tokens = stored["bytes"]["total"], stored["original_tokens"]
        assert row["bytes_per_token"] == total / tokens and row["ratio"] == 128 * tokens / total
        scores = [run["scores"]["f1"] for run in runs]
        assert row["f1"]["mean"] == pytest.approx(sum(scores) / len(scores))
        spread = None if len(scores) == 1 else pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
        assert row["f1"]["spread"] == spread
    lines = (tmp_path / "notes.md").read_text().splitlines()
    assert (lines[:2], lines[-2:]) == (["before", "<!-- extractive -->"], ["<!-- end -->", "after"])
    for row, line in zip(found["rows"], lines[4:-2], strict=True):
        stored = f"{row['bytes_per_token']:.1f} | {row['ratio']:.1f}x" if "ratio" in row else "- | -"
        assert line.startswith(f"| {row['row']} | {row['cut_layer'] or '-'} | 2 | {row['exact_match']['mean']:.1f}")
        assert line.endswith(f" | {stored} | {len(row['seeds'])} |")
    assert (tmp_path / "results" / "r.png").stat().st_size > 10_000


def test_extractive_runs_are_not_run_again(extractive, tmp_path, monkeypatch, capsys):
    quality, call = extractive
    call("run", "--rows", "BTR")
    printed = capsys.readouterr().out
    assert "\nteacher_0: {" in printed and "\ncut_1_steps_2_BTR_0: {" in printed
    results = sorted((tmp_path / "w").glob(f"*/{quality.RESULT}"))
    for path in results:
        edit_json(path, lambda record: record.update(scores={"exact_match": 1.0, "f1": 2.0}))
    written = [path.read_bytes() for path in results]
    assert len(written) == 2
    call("run", "--rows", "BTR")
    assert not capsys.readouterr().out and [path.read_bytes() for path in results] == written
    call("run", "--rows", "BTR", "--seeds", 0, 1)
    printed = capsys.readouterr().out
    assert "\ncut_1_steps_2_BTR_1: {" in printed and printed.count("_0: {") == 0
    assert [path.read_bytes() for path in results] == written
    for name, directory in (("STUDENT", "cut_1_steps_2_BTR_0"), ("TEACHER", "teacher_0")):
        monkeypatch.setattr(quality, name, replace(getattr(quality, name), batch_size=3))
        with pytest.raises(ValueError, match=f"{directory}: is of other settings; remove it to run it again"):
            call("run", "--rows", "BTR")
    assert [path.read_bytes() for path in results] == written


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
