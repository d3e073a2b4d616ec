"""The command `btr`, from nothing to metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import btr_reader
from btr_reader.jsonl import write_jsonl
from btr_reader.store import Store

from .helpers import atlas_checkpoint, rows, run

NQ = Path(__file__).parents[2].parent / "shared" / "data" / "nq_qed"


@pytest.fixture
def questions(tmp_path, passages):
    path = tmp_path / "questions.jsonl"
    write_jsonl(path, (
        {
            "id": f"q{i}",
            "question": f"what is said of {passages[i].title}",
            "answers": ["a list"],
            "passages": [{"id": passages[i].id}, passages[i + 1].id],
        }
        for i in range(6)
    ))  # fmt: skip
    return path


def test_from_nothing_to_metrics(tmp_path, capsys):
    assert run("make-corpus", "--out", tmp_path / "c", "--questions", 4) == 0
    corpus = tmp_path / "c" / "passages.jsonl"
    lines = corpus.read_text().splitlines()
    chosen = {p["id"] for row in rows(tmp_path / "c" / "questions.jsonl") for p in row["passages"]}
    corpus.write_text("".join(line + "\n" for line in lines if json.loads(line)["id"] in chosen))
    assert (
        run("init-reader", "--shape", "tiny", "--vocabulary-size", 1500, "--text", corpus, "--out", tmp_path / "r") == 0
    )
    encode = (
        "encode",
        corpus,
        "--reader",
        tmp_path / "r",
        "--out",
        tmp_path / "s",
        "--keep",
        0.5,
        "--passage-length",
        40,
    )
    assert run(*encode) == 0
    assert (tmp_path / "r" / "btr.safetensors").exists()
    assert run(*encode) == 0
    capsys.readouterr()
    assert run("store", "info", tmp_path / "s") == 0
    shown = capsys.readouterr().out
    assert "complete" in shown
    assert "attention_output of encoder layer 2" in shown
    assert "per token read" in shown
    assert run("store", "verify", tmp_path / "s") == 0
    assert "intact" in capsys.readouterr().out
    reading = ("--reader", tmp_path / "r", "--store", tmp_path / "s", "--questions", tmp_path / "c" / "questions.jsonl")
    out = tmp_path / "o.jsonl"
    assert run("answer", *reading, "--out", out, "--max-new-tokens", 5, "--preset", "aggressive") == 0
    results = rows(out)
    assert [row["id"] for row in results] == [row["id"] for row in rows(tmp_path / "c" / "questions.jsonl")]
    assert all({"query", "answers", "generation", "passages", "metadata", "id"} <= row.keys() for row in results)
    assert all(row["query"].endswith("answer: <extra_id_0>") for row in results)
    capsys.readouterr()
    assert run("eval", "--task", "nq", "--answers", out, "--json", tmp_path / "m.json") == 0
    assert "exact_match" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["questions"] == len(results)
    assert 0 <= metrics["exact_match"] <= metrics["f1"] <= 100
    again = tmp_path / "o2.jsonl"
    options = ("--max-new-tokens", 5, "--preset", "aggressive", "--batch-size", 2)
    assert run("eval", "--task", "nq", *reading, "--out", again, *options) == 0
    assert [row["generation"] for row in rows(again)] == [row["generation"] for row in results]


def test_an_interrupted_answer_run_continues(reader_directory, store_directory, questions, tmp_path, capsys):
    reading = ("answer", "--reader", reader_directory, "--store", store_directory, "--questions", questions)
    reading += ("--max-new-tokens", 4)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert run(*reading, "--out", whole) == 0
    content = whole.read_text()
    assert run(*reading, "--out", cut) == 0
    cut.write_text(content[: content.index("\n") * 3])
    assert run(*reading, "--out", cut) == 1
    assert "exists already" in capsys.readouterr().err
    assert run(*reading, "--out", cut, "--resume", "--batch-size", 2) == 0
    assert cut.read_text() == content
    cut.write_text(content[: content.index("\n") + 1])
    assert run(*reading, "--out", cut, "--resume", "--passages", 1, "--preset", "paper") == 1
    error = capsys.readouterr().err
    assert "cannot resume with other options: passages was 40, is 1; preset was 'none', is 'paper'" in error
    assert run(*reading, "--out", cut, "--resume") == 0
    (tmp_path / "cut.jsonl.options.json").unlink()
    assert run(*reading, "--out", cut, "--resume") == 1
    assert "cut.jsonl.options.json, the options that it was begun with, is missing" in capsys.readouterr().err
    assert run(*reading, "--store", tmp_path / "nowhere", "--out", cut, "--overwrite") == 1
    absent = tmp_path / "absent.jsonl"
    write_jsonl(absent, [{"question": "who", "answers": ["x"], "passages": [{"id": "nowhere"}]}])
    assert run(*reading, "--questions", absent, "--out", cut, "--overwrite") == 1
    assert run(*reading, "--questions", absent, "--out", absent, "--overwrite") == 1
    assert "is what questions are read from" in capsys.readouterr().err and absent.stat().st_size
    assert cut.read_text() == content  # nothing is lost to a mistyped command
    assert run(*reading, "--out", cut, "--overwrite") == 0
    cut.write_text("".join(content.splitlines(keepends=True)[1:3]))
    assert run(*reading, "--out", cut, "--resume") == 1
    assert "cannot resume" in capsys.readouterr().err
    assert run(*reading, "--out", cut, "--overwrite") == 0
    assert cut.read_text() == content
    cut.write_text("")  # failed before its first result
    assert run(*reading, "--out", cut) == 0
    assert cut.read_text() == content
    assert run(*reading, "--out", tmp_path / "none" / "out.jsonl") == 1
    assert "out.jsonl: its directory does not exist" in capsys.readouterr().err


def test_reading_options(reader_directory, store_directory, questions, tmp_path, capsys):
    reading = ("answer", "--reader", reader_directory, "--store", store_directory, "--questions", questions)
    reading += ("--max-new-tokens", 4)
    plain, merged = tmp_path / "plain.jsonl", tmp_path / "merged.jsonl"
    assert run(*reading, "--out", plain) == 0
    assert run(*reading, "--out", merged, "--keep-joint", 0.5, "--similarity", "keys", "--linears", "int8") == 0
    assert [row["id"] for row in rows(merged)] == [row["id"] for row in rows(plain)]
    assert merged.read_text() != plain.read_text()
    assert run(*reading, "--out", tmp_path / "x.jsonl", "--device", "cuda:99") == 1
    assert "device: cuda:99 was asked for" in capsys.readouterr().err
    assert run(*reading, "--out", tmp_path / "x.jsonl", "--keep-decoder", 0) == 1
    assert "decoder: the share of tokens to keep" in capsys.readouterr().err


def test_atlas_form_reads_tokens_of_the_store_or_given_texts(
    reader_directory, store_directory, questions, passages, tmp_path, capsys
):
    common = ("answer", "--reader", reader_directory, "--max-new-tokens", 4)
    from_store, from_text = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert (
        run(*common, "--questions", questions, "--store", store_directory, "--form", "atlas", "--out", from_store) == 0
    )
    known = {p.id: {"id": p.id, "title": p.title, "text": p.text} for p in passages}
    with_text = tmp_path / "with_text.jsonl"
    write_jsonl(with_text, (
        {**row, "passages": [known[p if isinstance(p, str) else p["id"]] for p in row["passages"]]}
        for row in rows(questions)
    ))  # fmt: skip
    assert run(*common, "--questions", with_text, "--out", from_text) == 0
    assert len(rows(from_text)) == len(rows(from_store)) == 6
    assert run(*common, "--questions", questions, "--form", "btr", "--out", tmp_path / "c.jsonl") == 1
    assert "the btr form needs a store" in capsys.readouterr().err
    deformer = ("--form", "deformer", "--store", store_directory, "--out", tmp_path / "c.jsonl")
    assert run(*common, "--questions", questions, *deformer) == 1
    assert "a binary store cannot be read in the deformer form" in capsys.readouterr().err


def test_missing_passages(reader_directory, store_directory, passages, tmp_path, capsys):
    questions = tmp_path / "q.jsonl"
    write_jsonl(
        questions,
        [
            {"id": "a", "question": "x", "answers": ["y"], "passages": ["nowhere", passages[0].id]},
            {"id": "b", "question": "x", "answers": ["y"], "passages": ["nowhere"]},
        ],
    )
    command = ("answer", "--reader", reader_directory, "--store", store_directory, "--questions", questions)
    command += ("--max-new-tokens", 3, "--overwrite", "--out", tmp_path / "o.jsonl")
    assert run(*command) == 1
    assert "question 'a': passage 'nowhere' is not in the store" in capsys.readouterr().err
    assert run(*command, "--skip-missing", "--batch-size", 2) == 0
    assert "2 passages are not in the store" in (shown := capsys.readouterr().out)
    assert "1 questions had no passage left" in shown
    first, second = rows(tmp_path / "o.jsonl")
    assert first["passages"] == [{"id": passages[0].id}]
    assert (second["generation"], second["passages"]) == ("", [])
    write_jsonl(questions, [{"question": "x"}])
    assert run(*command) == 1
    assert "comes without passages" in capsys.readouterr().err


def test_multiple_choice_run(reader_directory, store_directory, passages, tmp_path, capsys):
    questions, out = tmp_path / "q.jsonl", tmp_path / "o.jsonl"
    options = {"A": "one", "B": "two", "C": "three", "D": "four"}
    write_jsonl(questions, (
        {"id": i, "question": f"{i} + 1?", "options": options, "answer": "B", "passages": [passages[i].id]}
        for i in range(2)
    ))  # fmt: skip
    command = ("eval", "--task", "mmlu", "--reader", reader_directory, "--store", store_directory)
    command += ("--questions", questions, "--out", out, "--permutations", "cyclic", "--batch-size", 4)
    assert run(*command) == 0
    assert "debiased_accuracy" in capsys.readouterr().out
    results = rows(out)
    assert len(results) == 8
    for row in results:
        assert row["choice_logits"].keys() == options.keys()
        assert row["generation"] == max(row["choice_logits"], key=row["choice_logits"].get)


def test_convert_atlas_and_calibrate(reader, reader_directory, corpus, tmp_path, capsys):
    checkpoint = atlas_checkpoint(reader, tmp_path / "atlas")
    out = tmp_path / "reader"
    assert run("convert-atlas", checkpoint, "--tokenizer", reader_directory, "--out", out, "--cut-layer", 1) == 0
    assert run("calibrate", corpus, "--reader", out, "--max-passages", 5, "--passage-length", 20) == 0
    assert run("encode", corpus, "--reader", out, "--out", tmp_path / "s", "--passage-length", 20) == 0
    assert len(Store(tmp_path / "s")) == 40
    named = ("--options-class", "some.Options", "--options-class", "other.Options")
    assert run("convert-atlas", checkpoint, "--tokenizer", reader_directory, "--out", tmp_path / "x", *named) == 0
    assert run("convert-atlas", checkpoint, "--tokenizer", reader_directory, "--out", out) == 1
    assert "not empty" in capsys.readouterr().err
    assert run("convert-atlas", tmp_path, "--tokenizer", reader_directory, "--out", tmp_path / "y") == 1
    assert "not an Atlas checkpoint" in capsys.readouterr().err


def test_a_store_of_another_reader_is_refused(store_directory, questions, make_reader, reader, tmp_path, capsys):
    other = make_reader()
    with torch.no_grad():
        other.model.shared.weight[5] += 1
    other.save(tmp_path / "weights")
    make_reader(1).save(tmp_path / "cut")
    command = ("answer", "--store", store_directory, "--questions", questions, "--out", tmp_path / "o.jsonl")
    assert run(*command, "--reader", tmp_path / "weights") == 1
    assert "encoded by another reader" in capsys.readouterr().err
    assert run(*command, "--reader", tmp_path / "cut") == 1
    assert "but the reader is cut at" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_bench_report(tmp_path, capsys):
    settings = ("--shape", "tiny", "--passages", 3, "--passage-length", 24, "--query-length", 8, "--new-tokens", 2)
    report, plot = tmp_path / "b.json", tmp_path / "b.svg"
    sweep = tmp_path / "s.svg"
    files = ("--json", report, "--plot", plot, "--sweep-plot", sweep)
    assert run("bench", *settings, "--repeats", 2, "--threads", 1, *files) == 0
    shown = capsys.readouterr().out
    record = json.loads(report.read_text())
    assert record["shape"] == "tiny"
    assert isinstance(record["device"], str)
    assert record["settings"]["preset"] == "aggressive"
    assert record["settings"]["keep"] == {"offline": 0.5, "joint": 0.8, "decoder": 0.5}
    assert record["settings"]["threads"] == 1
    assert list(record["readers"]) == ["atlas", "deformer", "atlas-int8", "btr", "btr-int8"]
    for name, measured in record["readers"].items():
        assert measured["queries_per_second"] == pytest.approx(1 / measured["seconds"])
        assert sum(measured["stages"].values()) <= measured["spread"]["maximum"] * 1.5
        assert all(seconds >= 0 for seconds in measured["stages"].values())
        assert measured["stages"]["decoding"] > 0
        assert measured["latency"]["p50"] <= measured["latency"]["p90"] <= measured["latency"]["p99"]
        assert measured["peak_memory"] is None or measured["peak_memory"] >= 0
        assert name in shown
    tokens = {name: measured["memory_tokens"] for name, measured in record["readers"].items()}
    assert tokens["atlas"] == tokens["deformer"] == 3 * (24 + 8) > tokens["btr"] == tokens["btr-int8"]
    shares = [row["memory_tokens"] for row in record["sweep"]]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True)
    assert all(row["speedup"] > 0 for row in record["sweep"])
    assert sweep.read_text().lstrip().startswith("<?xml")
    assert set(record["speedup"]) == {"deformer", "atlas-int8", "btr", "btr-int8"}
    for spread in record["speedup_by_round"].values():
        assert 0 < spread["minimum"] <= spread["median"] <= spread["maximum"]
    atlas = record["readers"]["atlas"]["queries_per_second"]
    assert record["speedup"]["btr"] == pytest.approx(record["readers"]["btr"]["queries_per_second"] / atlas)
    assert plot.read_text().lstrip().startswith("<?xml")


def test_bench_over_a_file_and_the_other_settings(tmp_path, corpus, capsys):
    settings = ("--shape", "tiny", "--passages", 2, "--passage-length", 16, "--query-length", 6, "--new-tokens", 1)
    settings += ("--repeats", 1, "--threads", 1, "--preset", "none", "--cut-point", "layer_output")
    chosen = ("--keep-joint", 0.7, "--similarity", "keys", "--readers", "btr", "atlas", "btr-centroids")
    assert run("bench", *settings, *chosen, "--passages-file", corpus) == 0
    shown = capsys.readouterr().out
    assert "kept: offline 1.0, per joint layer 0.7, to the decoder 1.0" in shown
    assert "deformer" not in shown and "btr-centroids" in shown
    for wrong, message in [
        (("--readers", "btr"), "readers must be atlas and any of"),
        (("--device", "tpu"), "device must be cpu, cuda or cuda:N, got 'tpu'"),
        (("--device", "cuda:99"), "device: cuda:99 was asked for, but PyTorch sees"),
        (("--dtype", "bfloat16"), "dtype must be float32 on a CPU"),
        (("--keep-joint", "1.5"), "joint: the share of tokens to keep"),
    ]:
        assert run("bench", *settings, *wrong) == 1
        assert message in capsys.readouterr().err
    assert run("bench", *settings[:2], "--passage-length", 4000, "--passages-file", corpus) == 1
    assert "are needed" in capsys.readouterr().err
    assert run("bench", "--shape", "tiny", "--passages", 0) == 1
    assert "--passages must be at least 1" in capsys.readouterr().err
    assert run("bench", "--json", tmp_path / "nowhere" / "b.json") == 1
    assert "its directory does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("store", "info", "{tmp}/nowhere"), "not a store"),
        (("store", "verify", "{tmp}/nowhere"), "not a store"),
        (("encode", "{tmp}/none.jsonl", "--reader", "{reader}", "--out", "{tmp}/s"), "none.jsonl: no such file"),
        (("encode", "{tmp}/bad.jsonl", "--reader", "{reader}", "--out", "{tmp}/s"), "bad.jsonl:2: not valid JSON"),
        (("encode", "{tmp}/empty.jsonl", "--reader", "{reader}", "--out", "{tmp}/s"), "no passages"),
        (("encode", "{tmp}/bad.jsonl", "--reader", "{tmp}/nowhere", "--out", "{tmp}/s"), "no such reader directory"),
        (
            ("encode", "{tmp}/bad.jsonl", "--reader", "{reader}", "--out", "{tmp}/s", "--same-id-first"),
            "--keep below 1",
        ),
        (
            ("encode", "{tmp}/bad.jsonl", "--reader", "{reader}", "--out", "{tmp}/s", "--device", "gpu"),
            "--device must be",
        ),
        (("calibrate", "{tmp}/bad.jsonl", "--reader", "{reader}", "--max-passages", "0"), "--max-passages must be"),
        (("init-reader", "--out", "{tmp}"), "not empty"),
        (("init-reader", "--shape", "tiny", "--cut-layer", "9", "--out", "{tmp}/r"), "below the 4 encoder layers"),
        (("init-reader", "--tokenizer", "{tmp}", "--out", "{tmp}/r"), "no tokenizer there"),
        (("eval", "--task", "nq"), "pass --answers FILE"),
        (("eval", "--task", "nq", "--answers", "{tmp}/none.jsonl"), "no such file"),
        (("eval", "--task", "nq", "--answers", "{tmp}/bad.jsonl", "--out", "{tmp}/o"), "does not go with"),
        (("make-corpus", "--out", "{tmp}/c", "--questions", "0"), "questions must be at least 1"),
    ],
)
def test_errors_are_one_line(arguments, message, reader_directory, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"id": "1", "text": "x"}\n{"id": "2", "text"\n')
    (tmp_path / "empty.jsonl").write_text("")
    filled = [argument.format(tmp=tmp_path, reader=reader_directory) for argument in arguments]
    assert run(*filled) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "btr: error:" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "s").exists()


def test_wrong_usage_and_debugging(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_status:
        run("encode")
    assert exit_status.value.code == 2
    monkeypatch.setenv("BTR_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("store", "info", tmp_path)


def test_help_needs_no_torch():
    code = (
        "import sys; from btr_reader.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("encode", "answer", "eval", "bench", "convert-atlas", "init-reader", "store"):
        assert command in done.stdout


@pytest.mark.skipif(not NQ.is_dir(), reason="the nq_qed data is not beside this checkout")
def test_real_questions(reader_directory, tmp_path):
    wanted = rows(NQ / "dev.jsonl")[:8]
    given = [passage for question in wanted for passage in question["passages"]]
    write_jsonl(tmp_path / "p.jsonl", {p["id"]: p for p in given}.values())
    write_jsonl(tmp_path / "q.jsonl", wanted)
    encode = ("encode", tmp_path / "p.jsonl", "--reader", reader_directory, "--out", tmp_path / "s")
    assert run(*encode, "--passage-length", 64, "--keep", 0.5) == 0
    reading = ("--reader", reader_directory, "--store", tmp_path / "s", "--questions", tmp_path / "q.jsonl")
    out = tmp_path / "o.jsonl"
    assert (
        run("eval", "--task", "nq", *reading, "--out", out, "--max-new-tokens", 4, "--json", tmp_path / "m.json") == 0
    )
    assert [row["id"] for row in rows(out)] == [question["id"] for question in wanted]
    assert json.loads((tmp_path / "m.json").read_text())["questions"] == 8


def test_every_public_name_is_there():
    assert all(getattr(btr_reader, name) is not None for name in btr_reader.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = btr_reader.nothing


def test_a_missing_dependency_is_one_line_that_says_what_to_install():
    code = "import sys; sys.modules['tyro.conf'] = None; from btr_reader.__main__ import main; sys.exit(main())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.strip() == "btr: tyro.conf is not installed: run pip install 'btr-kernels[reader]'"
