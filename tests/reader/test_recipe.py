"""The commands of docs/recipe.md, in order, on a tiny reader: they exist, fit together, and leave what they say."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from btr_reader.jsonl import write_jsonl
from btr_reader.reader import load_reader
from btr_reader.store import Store
from btr_reader.training.facts import fact_corpus, fact_questions

from .helpers import atlas_checkpoint, rows, run

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from readme_commands import commands  # noqa: E402

#: What makes a command quick; of options that are given twice the last one counts.
QUICK = {
    "btr train": "--steps 2 --evaluate-every 2 --accumulate 1 --passages 3 --passage-length 20 --target-length 4",
    "btr encode": "--passage-length 20",
    "btr answer": "--max-new-tokens 3",
    "btr eval --task nq --reader": "--max-new-tokens 3",
}


def test_the_recipe_runs_as_it_stands(tiny_reader, facts_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atlas_checkpoint(tiny_reader(), Path("atlas-base"))
    facts_tokenizer.save(Path("t5-tokenizer"))
    questions = list(fact_questions("nq", 6, 3))
    write_jsonl("wikipedia.jsonl", fact_corpus(questions))
    for name, part in (("nq-train", questions[:4]), ("nq-dev", questions[4:])):
        write_jsonl(f"{name}.jsonl", ({k: v for k, v in question.items() if k != "passages"} for question in part))
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    lines = [command[-1] for _, command in commands(text)]
    assert len(lines) == 13 and all(line.startswith("btr ") for line in lines)
    for line in lines:
        # The tiny reader has 24 channels: as large a share of them as 216 of 768.
        line = line.replace("--masked-bits 216", "--masked-bits 7")
        quick = next((options for start, options in QUICK.items() if line.startswith(start)), "")
        assert run(*shlex.split(f"{line} {quick}")[1:]) == 0, line
    reader = load_reader("compressed/best")
    store = Store("store")
    assert store.settings.masked_bits == 7 and len(store) == len(fact_corpus(questions))
    tables = reader.code.tables()
    assert (store.code.mask == tables.mask).all() and tables.stored_bits == 7
    assert len(rows(Path("answers.jsonl"))) == len(rows(Path("teacher-answers.jsonl"))) == 2
    assert json.loads(Path("compressed/finished.json").read_text())["run"]["settings"]["compression"]["joint"] == 0.8
