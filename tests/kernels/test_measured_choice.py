"""Which of two GPU backends `auto` takes, by made-up results."""

from __future__ import annotations

import json

import pytest
import torch

from btr_kernels.backends import measured
from btr_kernels.bench.gpu import report as reports
from btr_kernels.bench.gpu import ship
from btr_kernels.ops.define import backends

GPU = "NVIDIA Made-Up 9"


@pytest.fixture
def called():
    return []


@pytest.fixture
def kernels(called):
    def kernel(name):
        return lambda *args: called.append(name)

    return {name: kernel(name) for name in ("triton", "cuda")}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Replaces the shipped file by one with the given content."""
    path = tmp_path / "measured.json"
    monkeypatch.setattr(measured, "SHIPPED", path)
    return lambda content: path.write_text(content if isinstance(content, str) else json.dumps(content))


def of(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def test_the_nearest_measured_size_decides(results, kernels, called):
    results({GPU: {"pack_bits": {"float32": [[100, "triton"], [10_000, "cuda"], [1_000_000, "triton"]]}}})
    kernel = measured.choice(GPU, "pack_bits", kernels)
    for size, expected in ((0, "triton"), (999, "triton"), (1000, "cuda"), (99_999, "cuda"), (10**9, "triton")):
        kernel(of(size), None)
        assert called.pop() == expected, size


def test_another_kind_or_gpu_is_not_measured(results, kernels, called):
    results({GPU: {"pack_bits": {"float32": [[100, "cuda"]]}, "unpack_matmul_prepared": {"int8": [[100, "cuda"]]}}})
    pack, project = (measured.choice(GPU, name, kernels) for name in ("pack_bits", "unpack_matmul_prepared"))
    for kernel, args, expected in (
        (pack, (of(5),), "cuda"),
        (pack, (of(5, torch.bfloat16),), "triton"),
        (project, (of(5), None, None, "int8"), "cuda"),
        (project, (of(5), None, None, "exact"), "triton"),
    ):
        kernel(*args)
        assert called.pop() == expected
    assert measured.choice("another", "pack_bits", kernels) is kernels["triton"]
    assert measured.choice(GPU, "binarize", kernels) is kernels["triton"]


def test_where_the_preferred_is_always_faster_nothing_is_chosen_a_call(results, kernels):
    results({GPU: {"hamming_distance": {"": [[10, "triton"], [100, "triton"]]}}})
    assert measured.choice(GPU, "hamming_distance", kernels) is kernels["triton"]


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "null", {GPU: 3}, {GPU: {"pack_bits": 3}}, {GPU: {"pack_bits": {"float32": 3}}},
        {GPU: {"pack_bits": {"float32": []}}}, {GPU: {"pack_bits": {"float32": [[1, "gone"]]}}},
        {GPU: {"pack_bits": {"float32": [[5, "cuda"], [5, "cuda"]]}}}, {GPU: {"pack_bits": {"float32": [[0, "cuda"]]}}},
        {GPU: {"pack_bits": {"float32": [["x", "cuda"]]}}},
    ],
)  # fmt: skip
def test_what_cannot_be_used_counts_as_not_measured(results, kernels, content):
    results(content)
    assert measured.choice(GPU, "pack_bits", kernels) is kernels["triton"]


def test_auto_asks_for_the_gpu_of_the_tensor(results, kernels, called, monkeypatch):
    results({GPU: {"pack_bits": {"float32": [[100, "cuda"]]}}})
    for name in ("triton", "cuda"):
        module = backends._module(name)
        monkeypatch.setattr(module, "why_not", lambda: None)
        monkeypatch.setattr(module, "kernel", lambda operator, name=name: kernels[name])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)
    device = torch.device("cuda", 7)
    try:
        backends.resolve("pack_bits", device)(of(5))
        backends.resolve("merge_bits", device)(of(5))
    finally:
        backends._resolve.cache_clear()
    assert called == ["cuda", "triton"], "Triton first where nothing is measured"


def result_of(*rows: dict, **changed) -> dict:
    shared = {"kind": "", "size": 10, "operators": ["match_tokens", "merge_bits"]}
    return {
        "format": reports.FORMAT, "complete": True, "gpu": GPU, "checks": {"good": {"passed": True}},
        "tuned": {"match_tokens": {"4,5": {"A": 32}}}, "rows": [{**shared, **row} for row in rows], **changed,
    }  # fmt: skip


def test_result_files_become_what_auto_reads(results, kernels, called, tmp_path):
    results({GPU: {"pack_bits": {"float32": [[100, "cuda"]]}}, "another": {}})
    tuned = tmp_path / "tuned.json"
    tuned.write_text("{}")
    found = result_of(
        {"size": 1000, "backends": {"triton": 3e-6, "cuda": 2e-6}},
        {"size": 10, "backends": {"triton": 2e-6, "cuda": 4e-6}},
        {"size": 10, "backends": {"triton": 9e-6, "cuda": 1e-6}},  # together with the one before, CUDA's
        {"size": 50, "backends": {"triton": 1e-6, "cuda": None}},  # failed
        {"operators": [], "backends": {}},
    )
    ship.ship(found, measured.SHIPPED, tuned)
    shipped = json.loads(measured.SHIPPED.read_text())
    entries = {"": [[10, "cuda"], [1000, "cuda"]]}
    assert shipped[GPU] == {"pack_bits": {"float32": [[100, "cuda"]]}, "match_tokens": entries, "merge_bits": entries}
    assert "another" in shipped and json.loads(tuned.read_text()) == {GPU: found["tuned"]}
    measured.choice(GPU, "merge_bits", kernels)(of(5))
    assert called == ["cuda"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "gpu-0"}, "expected a result file of format"),
        ({"complete": False}, "got an incomplete one"),
        ({"checks": {"bad": {"passed": False}}}, "got bad"),
    ],
)
def test_a_result_that_proves_nothing_is_not_shipped(results, tmp_path, changed, message):
    results("{}")
    with pytest.raises(ValueError, match=message):
        ship.ship(result_of(**changed), measured.SHIPPED, tmp_path / "tuned.json")
    assert measured.SHIPPED.read_text() == "{}"


def test_the_shipped_file_can_be_used(kernels):
    for gpu, operators in json.loads(measured.SHIPPED.read_text()).items():
        for operator, kinds in operators.items():
            for kind, entries in kinds.items():
                assert measured._table(entries, kernels), (gpu, operator, kind)
