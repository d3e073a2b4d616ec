"""The commands `btr index`, `btr retrieve`, and `btr answer` with retrieval."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from btr_reader.jsonl import write_jsonl
from btr_reader.retrieval import build_index

from .helpers import rows, run


@pytest.fixture
def questions(tmp_path, passages):
    path = tmp_path / "questions.jsonl"
    write_jsonl(path, ({"id": f"q{i}", "question": f"what is said of {passages[i].title}"} for i in range(5)))
    return path


def test_answers_over_retrieved_passages(
    reader_directory, store_directory, corpus, questions, encoder_directory, passages, tmp_path, capsys
):
    reading = ("answer", "--reader", reader_directory, "--questions", questions, "--max-new-tokens", 3)
    reading += ("--passages", 4, "--batch-size", 2, "--overwrite")
    stored, out = ("--store", store_directory), tmp_path / "o.jsonl"
    assert run("index", corpus, "--out", tmp_path / "bm25") == 0
    assert "bm25 index of 40 passages" in capsys.readouterr().out
    assert run(*reading, *stored, "--corpus", corpus, "--out", out) == 0
    in_memory = rows(out)
    texts = {p.id: p.text for p in passages}
    for result in in_memory:
        assert 1 <= len(result["passages"]) <= 4
        assert all(p.keys() == {"id", "title", "text", "score"} and p["text"] == texts[p["id"]]
                   for p in result["passages"])  # fmt: skip
        scores = [p["score"] for p in result["passages"]]
        assert scores == sorted(scores, reverse=True)
    assert run(*reading, *stored, "--index", tmp_path / "bm25", "--out", out) == 0
    assert rows(out) == in_memory
    filled = tmp_path / "filled.jsonl"
    command = ("retrieve", "--questions", questions, "--index", tmp_path / "bm25", "--passages", 4, "--out", filled)
    assert run(*command) == 0
    assert run(*reading, *stored, "--questions", filled, "--out", out) == 0
    drop = {"passages", "metadata"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in rows(out)] == [
        {k: v for k, v in row.items() if k not in drop} for row in in_memory
    ]
    # Without a store the texts are read.
    assert run(*reading, "--corpus", corpus, "--out", out) == 0
    assert [row["passages"] for row in rows(out)] == [row["passages"] for row in in_memory]
    for kind in ("dense", "binary"):
        built = ("index", corpus, "--out", tmp_path / kind, "--kind", kind, "--model", encoder_directory)
        assert run(*built, "--passage-length", 32) == 0
        asked = ("--index", tmp_path / kind, "--retriever-model", encoder_directory)
        assert run(*reading, *stored, *asked, "--out", out) == 0
        assert all(len(row["passages"]) == 4 for row in rows(out))


def test_retrieved_passages_that_are_not_in_the_store(
    reader_directory, store_directory, corpus, passages, tmp_path, capsys
):
    larger, questions = tmp_path / "larger.jsonl", tmp_path / "q.jsonl"
    write_jsonl(larger, [*rows(corpus), {"id": "new", "text": "zebras quagga"}])
    asked = ("zebras", f"quagga {passages[0].title}", "unfindable")
    write_jsonl(questions, ({"id": str(i), "question": text} for i, text in enumerate(asked)))
    command = ("answer", "--reader", reader_directory, "--store", store_directory, "--questions", questions)
    command += ("--corpus", larger, "--max-new-tokens", 2, "--out", tmp_path / "o.jsonl", "--overwrite")
    assert run(*command) == 1
    assert "question '0': passage 'new' is not in the store" in capsys.readouterr().err
    assert run(*command, "--skip-missing", "--passages", 3) == 0
    shown = capsys.readouterr().out
    assert "warning: 2 passages are not in the store and were left out" in shown
    assert "warning: 2 questions had no passage left" in shown
    first, second, third = rows(tmp_path / "o.jsonl")
    assert first["passages"] == third["passages"] == []
    assert passages[0].id in [p["id"] for p in second["passages"]]


def test_retrieve_reports_recall_and_continues(corpus, passages, questions, tmp_path, capsys):
    write_jsonl(questions, (
        {"id": i, "question": f"what is said of {p.title} {p.text}", "answers": ["x"], "passages": [p.id]}
        for i, p in enumerate(passages[:6])
    ))  # fmt: skip
    out, again = tmp_path / "o.jsonl", tmp_path / "again.jsonl"
    command = ("retrieve", "--questions", questions, "--corpus", corpus, "--passages", 5)
    assert run(*command, "--out", out) == 0
    assert "recall@1 100.0%  recall@5 100.0%" in capsys.readouterr().out
    content = out.read_text()
    assert [row["answers"] for row in rows(out)] == [["x"]] * 6
    assert run(*command, "--out", again) == 0
    capsys.readouterr()
    again.write_text(content[: len(content) // 2])
    assert run(*command, "--out", again) == 1
    assert "exists already" in capsys.readouterr().err
    assert run(*command, "--out", again, "--resume") == 0
    assert again.read_text() == content
    assert "recall@5 100.0%" in capsys.readouterr().out
    again.write_text("".join(content.splitlines(keepends=True)[1:]))
    assert run(*command, "--out", again, "--resume") == 1
    assert "cannot resume" in capsys.readouterr().err
    assert run(*command, "--out", again, "--overwrite", "--retrieve", "more") == 0
    assert "recall@" not in capsys.readouterr().out
    assert [row["passages"][0] for row in rows(again)] == [{"id": p.id} for p in passages[:6]]
    assert all(len({p["id"] for p in row["passages"]}) == len(row["passages"]) for row in rows(again))
    content = again.read_text()
    for wrong in (("--passages", 0), ("--corpus", tmp_path / "none.jsonl"), ("--questions", tmp_path / "none.jsonl")):
        assert run(*command, *wrong, "--out", again, "--overwrite") == 1
        assert again.read_text() == content  # nothing is lost to a mistyped command
    content = questions.read_text()
    assert run(*command, "--out", questions, "--overwrite") == 1
    assert questions.read_text() == content
    write_jsonl(questions, [{"question": "zzzz"}])
    assert run(*command, "--out", again, "--overwrite") == 0
    assert "warning: nothing was found for 1 questions" in capsys.readouterr().out


def test_question_vectors(corpus, questions, tmp_path, capsys):
    np.save(tmp_path / "p.npy", np.eye(40, dtype=np.float32))
    np.save(tmp_path / "q.npy", np.eye(40, dtype=np.float32)[:5])
    given = ("--kind", "dense", "--vectors", tmp_path / "p.npy")
    assert run("index", corpus, "--out", tmp_path / "i", *given) == 0
    command = ("retrieve", "--questions", questions, "--index", tmp_path / "i", "--passages", 1)
    command += ("--out", tmp_path / "o.jsonl", "--overwrite")
    assert run(*command, "--question-vectors", tmp_path / "q.npy") == 0
    assert [row["passages"][0]["id"] for row in rows(tmp_path / "o.jsonl")] == [row["id"] for row in rows(corpus)][:5]
    assert run(*command) == 1
    assert "--question-vectors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "question 'q0' comes without passages: list them in its field 'passages', or pass --index or --corpus"),
        (("--index", "i", "--corpus", "c"), "pass --index or --corpus, not both"),
        (("--retrieve", "always"), "--retrieve always needs --index or --corpus"),
        (("--corpus", "c", "--retriever-model", "m"), "go with a dense or binary --index"),
        (("--corpus", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--index", "nowhere"), "nowhere: not an index (no manifest.json): make one with btr index"),
    ],
)
def test_wrong_options_leave_no_file(reader_directory, store_directory, questions, options, message, tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    command = ("--reader", reader_directory, "--store", store_directory, "--questions", questions, "--out", out)
    assert run("answer", *command, *options) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_retrieve_needs_something_to_retrieve_from(questions, tmp_path, capsys):
    command = ("retrieve", "--questions", questions, "--out", tmp_path / "o.jsonl")
    for options in ((), ("--retrieve", "missing")):
        assert run(*command, *options) == 1
        assert "--index or --corpus to retrieve from" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("")
    assert run("retrieve", "--questions", tmp_path / "empty.jsonl", "--out", tmp_path / "o.jsonl") == 1
    assert "the file has no questions" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_without_faiss_it_says_what_to_install(corpus, questions, tmp_path):
    np.save(tmp_path / "p.npy", np.eye(40, dtype=np.float32))
    build_index(corpus, tmp_path / "i", "dense", vectors=tmp_path / "p.npy", progress=False)
    asked = ["retrieve", "--questions", questions, "--out", tmp_path / "o.jsonl", "--index", tmp_path / "i"]
    asked += ["--faiss", "HNSW32"]
    code = (
        "import sys; sys.modules['faiss'] = None; from btr_reader.__main__ import main\n"
        f"sys.argv = {['btr', *map(str, asked)]!r}; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "btr: faiss is not installed: run pip install 'btr-kernels[retrieval]'" in done.stderr
