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
    monkeypatch.setattr(module, "SHORTFALLS", tmp_path / "shortfalls.json")
    monkeypatch.setattr(module, "PAGES", ("README.md",))
    (tmp_path / "results").mkdir()
    return module


def test_table_is_filled_from_its_result_file(tables, tmp_path, monkeypatch):
    stages = dict.fromkeys(tables.STAGES, 0.5)
    reader = {"queries_per_second": 2.0, "seconds": 0.5, "stages": stages, "latency": {"p90": 0.75}}
    reader |= {"peak_memory": 12_000_000, "memory_tokens": 370}
    settings = {
        "passages": 3, "passage_length": 4, "new_tokens": 5, "preset": "none", "corpus": "text", "threads": 1,
        "torch": "2", "repeats": 7, "keep": {"offline": 0.5, "joint": 1.0, "decoder": 1.0},
    }  # fmt: skip
    report = {
        "shape": "base", "device": "a machine", "settings": settings,
        "readers": {"atlas": {**reader, "peak_memory": None}, "btr": reader}, "speedup": {"btr": 4.25},
    }  # fmt: skip
    (tmp_path / "results" / "r.json").write_text(json.dumps(report))
    (tmp_path / "README.md").write_text("a\n<!-- table: r.json -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr("sys.argv", ["readme_tables.py", "--check"])
    assert tables.main() == 1
    monkeypatch.setattr("sys.argv", ["readme_tables.py"])
    assert tables.main() == 0
    text = (tmp_path / "README.md").read_text()
    assert "| btr | 2.000 | 4.25x |" in text and "| 500 | 750 | 12 | 370 |" in text and "| 750 | - | 370 |" in text
    assert "old" not in text
    assert text.startswith("a\n") and text.endswith("b\n")


def test_a_table_without_results_says_so(tables):
    assert tables.table("nothing.json") == "Not measured.\n"


def test_the_table_of_the_gpu_is_that_of_the_newest_run(tables, tmp_path):
    assert tables.table("gpu") == "Not measured.\n"
    report = {
        "format": "gpu-1", "complete": True, "command": "make gpu", "date": "2026-01-01", "gpu": "A GPU",
        "versions": {"torch": "2", "triton": "3", "cuda": "13"}, "backend": "auto", "checks": {}, "limits": {},
        "rows": [], "reader": {}, "not_measured": {}, "time": {},
    }  # fmt: skip
    for gpu, date in (("a", "2026-01-02"), ("b", "2026-01-01")):
        (tmp_path / "results" / gpu).mkdir()
        (tmp_path / "results" / gpu / "r.json").write_text(json.dumps({**report, "date": date, "gpu": gpu}))
    assert tables.table("gpu").startswith("`make gpu` on a, 2026-01-02")
    assert tables.table("gpu").endswith("From `results/a/r.json`.\n")


def verdict(value, target=2.0):
    short = max(0.0, 100 * (1 - value / target))
    return {
        "against": "peer", "of_limit": False, "value": value, "target": target, "stretch": 3.0,
        "met": value >= target, "short_percent": short,
    }  # fmt: skip


@pytest.fixture
def kernels(tables, tmp_path, monkeypatch):
    """Writes a page, a result with these verdicts and the explanations; gives what the program returns."""

    def run(targets: dict, why: dict, *options: str, complete: bool = True):
        results = [
            {
                "name": name, "threads": threads, "clock": "cpu", "seconds": {"ours": {"cpu": 1e-3}},
                "ratio_to_baseline": 5.0, "ratio_to_best_peer": None, "percent_of_limit": 50.0, "spread_percent": 1.0,
                "scaling_percent": 90.0 if threads > 1 else None, "targets": verdicts if threads == 1 else [],
            }
            for name, verdicts in targets.items()
            for threads in (1, 2)
        ]  # fmt: skip
        environment = {**tables_environment, "threads": [1, 2]}
        report = {
            "format": tables.FORMAT, "complete": complete, "command": "run", "environment": environment, "limits": [],
            "results": results,
        }  # fmt: skip
        (tmp_path / "results" / "k.json").write_text(json.dumps(report))
        (tmp_path / "shortfalls.json").write_text(json.dumps({"k.json": why}))
        (tmp_path / "README.md").write_text(
            "<!-- table: k.json -->\n<!-- end -->\n<!-- targets: k.json -->\n<!-- end -->\n"
        )
        monkeypatch.setattr("sys.argv", ["readme_tables.py", *options])
        return tables.main(), (tmp_path / "README.md").read_text()

    return run


tables_environment = {
    "cpu": "a cpu", "backend": "auto", "instruction_set": "avx2", "torch_instruction_set": "AVX2",
    "omp_wait_policy": None, "btr_kernels": "1", "torch": "2", "numpy": "2", "faiss_cpu": None, "numkong": None,
}  # fmt: skip


def test_targets_say_what_stands_in_the_way(kernels):
    targets = {"a": [verdict(2.5)], "b": [verdict(3.5), verdict(1.5)], "c": []}
    code, text = kernels(targets, {"the bandwidth of the cache": ["b"]})
    assert code == 0
    assert "2 of 3 met, 1 of them at the stretch." in text
    assert "| a | peer | 2.50x | 2.00x | 3.00x | met |  |" in text
    assert "| b | peer | 3.50x | 2.00x | 3.00x | stretch met |  |" in text
    assert "| b | peer | 1.50x | 2.00x | 3.00x | short by 25% | the bandwidth of the cache |" in text
    assert "| c | 1.00 ms | 5.00x | - | 50% | 1% | 1.00 ms | 90% |" in text


@pytest.mark.parametrize(
    ("why", "message"),
    [({}, "does not explain: b"), ({"x": ["b", "a"]}, "no missed target: a"), ({"x": ["b"], "y": ["z"]}, "target: z")],
)
def test_missed_targets_and_explanations_belong_together(kernels, capsys, why, message):
    for options in ((), ("--check",)):
        assert kernels({"a": [verdict(2.5)], "b": [verdict(1.5)]}, why, *options)[0] == 1
        assert message in capsys.readouterr().err


def test_an_interrupted_run_makes_no_table(kernels, capsys):
    assert kernels({"a": []}, {}, complete=False)[0] == 1
    assert "k.json: expected a complete result" in capsys.readouterr().err


def test_every_command_and_example_is_run_but_what_ci_runs_itself():
    commands = load("tests/readme_commands.py").commands
    text = "```bash\nmake test\n# note\nbtr a \\\n  --b   # why\npip install x\n```\n"
    text += "```python\nprint(1)\n```\n```\nno\n```\n"
    shown = [shown for shown, _ in commands(text)]
    assert shown == ["btr a    --b", "python example:\nprint(1)\n"]


def test_tables_of_the_committed_results_have_a_row_for_every_result():
    module = load("benchmarks/readme_tables.py")
    # Those of quality have tables of their own scripts.
    paths = [path for path in sorted(module.RESULTS.rglob("*.json")) if path.parent.name != "quality"]
    names = [str(path.relative_to(module.RESULTS)) for path in paths]
    assert names
    for name in names:
        report = json.loads((module.RESULTS / name).read_text())
        rows = report["readers"] if "readers" in report else [result["name"] for result in report["results"]]
        text = module.table(name)
        for row in rows:
            assert f"| {row} |" in text
