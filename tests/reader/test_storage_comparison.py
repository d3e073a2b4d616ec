"""The comparison of ways to compress a store: what it makes is what `btr encode` makes, and its figures are right."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import btr_kernels
from btr_reader.cli import main
from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.recoding import flipped_share, recode_store, statistics_of
from btr_reader.storage_comparison import MECHANISMS, compare_storage
from btr_reader.store import Store

VARIANTS = [
    {"keep": 0.6},
    {"keep": 0.6, "same_id_first": True, "original_ids": False},
    {"masked_bits": 10},
    {"masked_bits": 10, "keep": 0.6, "same_id_first": True, "original_ids": False},
    {"codebook_bytes": 14.0},
    {"codebook_bytes": 14.0, "keep": 0.6, "original_ids": False},
]


@pytest.fixture(scope="module")
def plain(reader, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "s"
    encode_corpus(PassageEncoder(reader, passage_length=32), corpus, out, shard_passages=16, progress=False)
    return Store(out)


@pytest.mark.parametrize("options", VARIANTS)
def test_a_recoded_store_is_the_encoded_one(reader, corpus, plain, tmp_path, options):
    statistics = statistics_of(plain)
    encoder = PassageEncoder(reader, passage_length=32, **options)
    tables = statistics.tables(options["masked_bits"]) if "masked_bits" in options else None
    encode_corpus(encoder, corpus, tmp_path / "encoded", shard_passages=16, tables=tables, progress=False)
    recoded = recode_store(plain, tmp_path / "recoded", replace(plain.settings, **options), statistics)
    names = sorted(path.name for path in (tmp_path / "encoded").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "recoded").iterdir())
    for name in names:
        assert (tmp_path / "encoded" / name).read_bytes() == (tmp_path / "recoded" / name).read_bytes()
    assert recoded.manifest == Store(tmp_path / "encoded").manifest


def test_flipped_bits_are_counted_over_original_tokens(plain, tmp_path):
    merged = recode_store(plain, tmp_path / "s", replace(plain.settings, keep=0.5))
    flipped = total = 0
    for passage_id in plain.passage_ids():
        expected = btr_kernels.unpack_bits(plain.passage(passage_id).states, 44)
        found = btr_kernels.unpack_bits(merged.passage(passage_id).states, 44)
        for token, slot in enumerate(merged.passage(passage_id).slots.tolist()):
            flipped += int((expected[token] != found[slot]).sum())
            total += 44
    assert flipped_share(plain, merged) == pytest.approx(flipped / total)
    assert flipped > 0
    assert flipped_share(plain, plain) == 0


def test_report(reader, passages):
    report = compare_storage(reader, passages, ratios=(9, 13, 1000), passage_length=32, sample=5, progress=False)
    assert report["settings"]["passages"] == len(passages)
    assert report["settings"]["sample"] == 5
    assert report["settings"]["statistics"] == "of the corpus itself"
    first, *others = report["rows"]
    assert first["mechanism"] == "plain bits"
    assert first["flipped_bits"] == 0
    assert first["cosine_to_bits"] == pytest.approx(1)
    assert -1 <= first["cosine_to_floats"] < 1
    assert [row["mechanism"] for row in others] == [m.name for m in MECHANISMS for _ in range(3)]
    reached = [row for row in others if "unreachable" not in row]
    # 44 float32 channels over 1000 are less than a token id takes.
    assert len(reached) >= len(MECHANISMS)
    assert all("unreachable" in row for row in others[2::3])
    for row in reached:
        assert row["bytes_per_token"]["total"] <= row["asked_for"] * 1.1
        assert 0 <= row["flipped_bits"] < 0.5
        assert -1 <= row["cosine_to_bits"] <= 1 + 1e-6
    # The more a mechanism may take, the fewer bits it flips.
    for mechanism in MECHANISMS:
        flips = [row["flipped_bits"] for row in reached if row["mechanism"] == mechanism.name]
        assert flips == sorted(flips)
    with pytest.raises(ValueError, match="must not be empty"):
        compare_storage(reader, [], progress=False)


def test_unmerged_tokens_have_the_cosines_of_a_run_by_hand(reader, passages):
    from btr_reader.batches import PassageBatch, pad_queries
    from btr_reader.engine import ReaderEngine
    from btr_reader.storage_comparison import QUESTION

    report = compare_storage(reader, passages[:3], ratios=(9,), passage_length=32, sample=3, progress=False)
    query = pad_queries([reader.tokenizer.encode(QUESTION)])
    cosines = []
    for passage in passages[:3]:
        with torch.inference_mode():
            _, states, sizes = PassageEncoder(reader, passage_length=32).states([passage])
        on_bits = ReaderEngine(reader, "btr").encode(
            query, PassageBatch(btr_kernels.pack_bits(states)[None], sizes[None])
        )
        on_floats = ReaderEngine(reader, "deformer").encode(query, PassageBatch(states[None], sizes[None]))
        pair = (memory.states[0, query.ids.shape[1] :] for memory in (on_bits, on_floats))
        cosines.append(torch.cosine_similarity(*pair, dim=-1))
    assert report["rows"][0]["cosine_to_floats"] == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-4)


def test_command(reader_directory, corpus, tmp_path, capsys):
    command = ("compare-storage", str(corpus), "--reader", str(reader_directory), "--ratios", "9", "13")
    command += ("--max-passages", "12", "--passage-length", "24", "--sample", "3", "--original-ids", "drop")
    report, plot = tmp_path / "c.json", tmp_path / "c.svg"
    assert main([*command, "--json", str(report), "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    rows = json.loads(report.read_text())["rows"]
    assert shown.count("\n| ") == 2 + sum("unreachable" not in row for row in rows)
    assert "original token ids dropped" in shown
    assert plot.read_text().lstrip().startswith("<?xml")
    for wrong, message in [
        (("--max-passages", "0"), "--max-passages must be at least 1"),
        (("--plot", "c.txt"), "plot must end in"),
        (("--json", str(tmp_path / "nowhere" / "c.json")), "its directory does not exist"),
        (("--sample", "0"), "must not be empty"),
    ]:
        assert main([*command, *wrong]) == 1
        assert message in capsys.readouterr().err
