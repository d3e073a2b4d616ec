"""README's measured tables come from result files, and the runner of its commands sees them all."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables(tmp_path, monkeypatch):
    module = load("benchmarks/readme_tables.py")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return module


def test_table_is_filled_from_its_result_file(tables, tmp_path, monkeypatch):
    stages = dict.fromkeys(tables.STAGES, 0.5)
    reader = {"queries_per_second": 2.0, "seconds": 0.5, "stages": stages}
    settings = {
        "passages": 3, "passage_length": 4, "new_tokens": 5, "preset": "none", "corpus": "text", "threads": 1,
        "torch": "2", "repeats": 7, "keep": {"offline": 0.5, "joint": 1.0, "decoder": 1.0},
    }  # fmt: skip
    report = {
        "shape": "base", "device": "a machine", "settings": settings,
        "readers": {"atlas": reader, "btr": reader}, "speedup": {"btr": 4.25},
    }  # fmt: skip
    (tmp_path / "results" / "r.json").write_text(json.dumps(report))
    (tmp_path / "README.md").write_text("a\n<!-- table: r.json -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr("sys.argv", ["readme_tables.py", "--check"])
    assert tables.main() == 1
    monkeypatch.setattr("sys.argv", ["readme_tables.py"])
    assert tables.main() == 0
    text = (tmp_path / "README.md").read_text()
    assert "| btr | 2.000 | 4.25x |" in text
    assert "old" not in text
    assert text.startswith("a\n") and text.endswith("b\n")


def test_a_table_without_results_says_so(tables):
    assert tables.table("nothing.json") == "Not measured.\n"


def test_every_command_and_example_is_run_but_what_ci_runs_itself():
    commands = load("tests/readme_commands.py").commands
    text = "```bash\nmake test\n# note\nbtr a \\\n  --b   # why\npip install x\n```\n"
    text += "```python\nprint(1)\n```\n```\nno\n```\n"
    shown = [shown for shown, _ in commands(text)]
    assert shown == ["btr a    --b", "python example:\nprint(1)\n"]


def test_tables_of_the_committed_results_have_a_row_for_every_result():
    module = load("benchmarks/readme_tables.py")
    names = [str(path.relative_to(module.RESULTS)) for path in sorted(module.RESULTS.rglob("*.json"))]
    assert names
    for name in names:
        report = json.loads((module.RESULTS / name).read_text())
        rows = report["readers"] if "readers" in report else [result["name"] for result in report["results"]]
        text = module.table(name)
        for row in rows:
            assert f"| {row} |" in text
