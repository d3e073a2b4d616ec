"""The choice among a kernel's configurations, with a timer that is told what to say."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from triton.runtime.errors import OutOfResources

from btr_kernels.backends.triton import tuning

SLOW, FAST, LARGE = ({"BM": 16, "num_warps": n} for n in (4, 8, 2))
CONFIGS = [SLOW, FAST, LARGE]
SECONDS = {4: 2.0, 8: 1.0, 2: 0.5}
GPU = torch.device("cuda", 0)
KEY = (64, 768, torch.float32)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A GPU that is not there; `launched` collects what runs. LARGE does not fit it."""
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "_unknown", set())
    monkeypatch.setattr(tuning, "_file", lambda device: tmp_path / "cache" / "GPU_triton-1.json")
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "tuned.json")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv("BTR_TUNE", raising=False)
    return tmp_path


@pytest.fixture
def launched():
    return []


@pytest.fixture
def choose(machine, launched):
    def launch(**config):
        if config == LARGE:
            raise OutOfResources(2, 1, "shared memory")
        launched.append(config)

    def timer(run):
        run()
        return SECONDS[launched[-1]["num_warps"]]

    return lambda key=KEY, configs=CONFIGS: tuning.choose("kernel", configs, key, launch, GPU, timer)


def test_the_fastest_that_fits_is_chosen_once_and_stored(choose, machine, launched):
    assert choose() == FAST
    assert launched == [SLOW, FAST]
    assert choose() == FAST
    assert launched == [SLOW, FAST]
    stored = json.loads((machine / "cache" / "GPU_triton-1.json").read_text())
    assert stored == {"kernel": {"64,768,torch.float32": FAST}}
    assert [path.name for path in (machine / "cache").iterdir()] == ["GPU_triton-1.json"], "a temporary file is left"


def test_the_file_is_read_by_the_next_process(choose, launched):
    choose()
    tuning._chosen.clear()
    tuning._unknown.clear()
    launched.clear()
    assert choose() == FAST
    assert not launched
    choose((128, 768, torch.float32))
    assert launched, "another size is another entry"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"kernel": 3}', '{"kernel": {"64,768,torch.float32": {"BM": 1}}}', b"\xff\xfe"],
)
def test_an_invalid_entry_is_a_miss(choose, machine, content):
    path = machine / "cache" / "GPU_triton-1.json"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert choose() == FAST
    assert json.loads(path.read_text())["kernel"]["64,768,torch.float32"] == FAST


def test_the_shipped_table_comes_first(choose, machine, launched):
    (machine / "tuned.json").write_text(json.dumps({"GPU": {"kernel": {"64,768,torch.float32": SLOW}}}))
    assert choose() == SLOW
    assert not launched


@pytest.mark.parametrize("why", ["environment", "capture"])
def test_nothing_is_timed(choose, monkeypatch, machine, launched, why):
    if why == "environment":
        monkeypatch.setenv("BTR_TUNE", "0")
    else:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == SLOW
    assert not launched and not (machine / "cache").exists()
    monkeypatch.undo()


def test_a_default_is_not_remembered(choose, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setenv("BTR_TUNE", "0")
        assert choose() == SLOW
    assert choose() == FAST


def test_a_cache_that_cannot_be_written_costs_only_time(choose, machine):
    (machine / "cache").write_text("in the way")
    assert choose() == FAST


def test_nothing_fits(choose):
    with pytest.raises(RuntimeError, match="no configuration fits"):
        choose(configs=[LARGE, LARGE])


def test_where_there_is_no_memory_to_time_in_the_first_guess_runs(choose, machine, monkeypatch):
    def full(launch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tuning, "_seconds", full)
    assert tuning.choose("kernel", CONFIGS, KEY, lambda **config: None, GPU) == SLOW
    assert choose() == FAST, "a later call may time"


def test_a_single_configuration_needs_no_choice(choose, launched):
    assert choose(configs=[SLOW]) == SLOW
    assert not launched


def test_older_architectures_share_their_entries(monkeypatch):
    table = {0: "interpreter", 80: "ampere", 90: "hopper"}
    for capability, expected in (((8, 0), "ampere"), ((8, 9), "ampere"), ((9, 0), "hopper"), ((12, 0), "ampere")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        tuning.architecture.cache_clear()
        assert tuning.for_device(table, GPU) == expected
    tuning.architecture.cache_clear()
    assert tuning.for_device({0: "interpreter", 80: "ampere"}, torch.device("cpu")) == "interpreter"


def test_the_shipped_table_names_configurations():
    for kernels in json.loads(tuning.SHIPPED.read_text()).values():
        for entries in kernels.values():
            assert all(isinstance(config, dict) for config in entries.values())
