"""The store by itself, without a reader: random passages through every layout, kills between any two steps, readers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from btr_reader.digests import file_digest
from btr_reader.settings import ReaderSettings
from btr_reader.store import EncodedPassage, Store, StoreSettings, StoreWriter, TokenTables, load_manifest, store_report

PLAIN = StoreSettings(
    reader="r",
    corpus="c",
    vocabulary=90,
    channels=20,
    cut=ReaderSettings(2),
    kind="binary",
    keep=1.0,
    same_id_first=False,
    masked_bits=0,
    codebook_bytes=0.0,
    original_ids=True,
    passage_length=30,
    shard_passages=4,
)


def random_passages(wanted: StoreSettings, count: int, seed: int = 0) -> list[EncodedPassage]:
    random = np.random.default_rng(seed)
    passages = []
    for number in range(count):
        length = int(random.integers(1, wanted.passage_length + 1))
        kept = length if wanted.keep == 1 else max(1, round(length * wanted.keep))
        signs = random.standard_normal((kept, wanted.channels)).astype(np.float32)
        states = np.packbits(signs >= 0, axis=-1, bitorder="little") if wanted.kind == "binary" else signs
        # Every kept token needs an original one.
        slots = random.permutation(np.concatenate([np.arange(kept), random.integers(0, kept, length - kept)]))
        passages.append(
            EncodedPassage(
                f"é{seed}-{number}",
                torch.from_numpy(states.astype(np.float16) if wanted.kind == "float16" else states),
                random.integers(0, wanted.vocabulary, length).tolist(),
                None if wanted.keep == 1 else torch.from_numpy(slots),
            )
        )
    return passages


def random_tables(wanted: StoreSettings) -> TokenTables | None:
    if not wanted.masked_bits:
        return None
    random = np.random.default_rng(1)
    order = random.random((wanted.vocabulary, wanted.channels)).argsort(1)
    majority = random.integers(0, 2, order.shape)
    packed = [np.packbits(values, axis=1, bitorder="little") for values in (order < wanted.masked_bits, majority)]
    return TokenTables(*packed, wanted.masked_bits)


def restored(passage: EncodedPassage, wanted: StoreSettings) -> torch.Tensor:
    """The passage's states as the store gives them back: masked bits are those of the earliest token's id."""
    tables = random_tables(wanted)
    if tables is None:
        return passage.states
    slots = range(len(passage.token_ids)) if passage.slots is None else passage.slots.tolist()
    ids = [passage.token_ids[list(slots).index(row)] for row in range(len(passage.states))]
    mask, majority = (torch.from_numpy(table)[ids] for table in (tables.mask, tables.majority))
    return (passage.states & mask) | (majority & ~mask)


def write(directory: Path, wanted: StoreSettings, passages: list[EncodedPassage]) -> None:
    with StoreWriter(directory, wanted, tables=random_tables(wanted)) as writer:
        for first in range(writer.done, len(passages), wanted.shard_passages):
            writer.add_shard(passages[first : first + wanted.shard_passages])
        if not writer.complete:
            writer.finish()


kinds = [("binary", 0), ("binary", 1), ("binary", 9), ("binary", 20), ("float32", 0), ("float16", 0)]
layouts = st.builds(
    lambda kind, **changes: replace(PLAIN, kind=kind[0], masked_bits=kind[1], **changes),
    st.sampled_from(kinds),
    keep=st.sampled_from([1.0, 0.5]),
    original_ids=st.booleans(),
    vocabulary=st.sampled_from([90, 66_000]),
    channels=st.sampled_from([20, 24]),
    passage_length=st.sampled_from([30, 300]),
)


@given(layouts, st.integers(0, 100))
@settings(deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, wanted, seed):
    directory = tmp_path_factory.mktemp("store")
    passages = random_passages(wanted, 9, seed)
    write(directory, wanted, passages)
    store = Store(directory)
    assert store.passage_ids() == [p.id for p in passages]
    for passage in passages:
        found = store.passage(passage.id)
        assert torch.equal(found.states, restored(passage, wanted))
        assert (None if found.token_ids is None else found.token_ids.tolist()) == (
            passage.token_ids if wanted.original_ids else None
        )
        assert (found.slots is None) == (passage.slots is None)
        if found.slots is not None:
            assert torch.equal(found.slots, passage.slots)
    asked = [[passages[8], passages[0], passages[0]], [passages[5]]]
    batch = store.fetch([[p.id for p in row] for row in asked])
    assert batch.content.shape[:2] == (2, 3)
    if wanted.original_ids:
        tokens = store.fetch_tokens([[p.id for p in row] for row in asked])
        for query, row in enumerate(asked):
            for number, passage in enumerate(row):
                read = tokens.content[query, number, : len(passage.token_ids)]
                assert read.tolist() == passage.token_ids
    else:
        with pytest.raises(ValueError, match="--original-ids drop"):
            store.fetch_tokens([[passages[0].id]])
    for query, row in enumerate(asked):
        for number in range(3):
            if number >= len(row):
                assert not batch.sizes[query, number].any()
                assert not batch.content[query, number].any()
                continue
            passage, kept = row[number], len(row[number].states)
            assert torch.equal(batch.content[query, number, :kept], restored(passage, wanted).to(batch.content.dtype))
            assert not batch.content[query, number, kept:].any()
            slots = range(kept) if passage.slots is None else passage.slots.tolist()
            for slot in range(kept):
                members = [position for position, went_to in enumerate(slots) if went_to == slot]
                assert batch.sizes[query, number, slot] == len(members)
                assert (slot if batch.positions is None else batch.positions[query, number, slot]) == members[0]
            assert not batch.sizes[query, number, kept:].any()
    for number in range(len(store.manifest.shards)):
        store.verify(number)
    store.verify_side_files()
    report = store_report(directory)
    assert report["bytes"].get("total and tables", report["bytes"]["total"]) == sum(
        path.stat().st_size for path in directory.iterdir()
    )
    assert min(report["bytes"].values()) >= 0
    assert report["bytes"]["overhead"] < 4000
    with_ids = report["original_tokens"] if wanted.original_ids else report["tokens"] if wanted.masked_bits else 0
    assert report["bytes"]["token ids"] == with_ids * (2 if wanted.vocabulary == 90 else 4)


def test_passages_that_do_not_fit_are_refused(tmp_path):
    good = random_passages(PLAIN, 2)[0]
    merging = replace(PLAIN, keep=0.5)
    merged = random_passages(merging, 1)[0]
    for wanted, passage, match in [
        (PLAIN, replace(good, token_ids=[*good.token_ids, 3]), "though none were merged"),
        (PLAIN, replace(good, token_ids=[-1] * len(good.states)), r"token id must be in 0\.\.89"),
        (PLAIN, replace(good, token_ids=[90] * len(good.states)), r"token id must be in 0\.\.89"),
        (PLAIN, replace(good, states=good.states[:, :2]), "states must be"),
        (PLAIN, replace(good, id="x" * 70_000), "bytes of a passage id must be in"),
        (replace(PLAIN, passage_length=1), random_passages(PLAIN, 5)[3], r"length of a passage must be in 1\.\.1"),
        (merging, replace(merged, slots=merged.slots + 1), "a slot is not below"),
        (merging, replace(merged, slots=merged.slots * 0), "states that no token went to"),
    ]:
        with StoreWriter(tmp_path / match[:9], wanted) as writer:
            with pytest.raises(ValueError, match=match):
                writer.add_shard([passage])
            with pytest.raises(ValueError, match="a shard needs at least one"):
                writer.add_shard([])
        assert not load_manifest(tmp_path / match[:9]).shards


class Killed(BaseException):
    """Not an OSError: nothing that handles errors may see it, as nothing sees a SIGKILL."""


STEPS = ("fsync", "replace")


def fail_at(monkeypatch, step: int, error: BaseException) -> list[str]:
    """Lets the step-th call that changes the disk fail, before it has done anything."""
    calls = []

    def failing(name, real):
        def call(*arguments):
            calls.append(name)
            if len(calls) == step:
                raise error
            return real(*arguments)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, failing(name, getattr(os, name)))
    return calls


@pytest.mark.parametrize("masked_bits", [0, 9])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_a_failure_at_any_step_loses_nothing_that_was_written(tmp_path, monkeypatch, error, masked_bits):
    wanted = replace(PLAIN, keep=0.5, masked_bits=masked_bits)
    passages = random_passages(wanted, 10)
    write(tmp_path / "whole", wanted, passages)
    expected = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    step = 0
    while True:
        step += 1
        directory = tmp_path / f"at-{step}"
        with monkeypatch.context() as patch:
            calls = fail_at(patch, step, error)
            reported = 0
            try:
                with StoreWriter(directory, wanted, tables=random_tables(wanted)) as writer:
                    for first in range(0, 10, 4):
                        writer.add_shard(passages[first : first + 4])
                        reported += 1
                    writer.finish()
            except type(error):
                pass
        if len(calls) < step:
            break
        if (directory / "manifest.json").exists():
            store = Store(directory)
            assert len(store.manifest.shards) >= reported
            for number in range(len(store.manifest.shards)):
                store.verify(number)
        write(directory, wanted, passages)
        assert {p.name: p.read_bytes() for p in directory.iterdir()} == expected
    assert step > 12


READING = """
import sys
from btr_reader.store import Store
while True:
    store = Store(sys.argv[1])
    print("open", flush=True)
    ids = store.passage_ids()
    for number in range(len(store.manifest.shards)):
        store.verify(number)
    if ids:
        assert store.fetch([ids]).sizes.any()
    if store.manifest.complete:
        break
print(len(ids))
"""


def test_many_processes_read_while_one_writes(tmp_path):
    passages = random_passages(PLAIN, 200)
    with StoreWriter(tmp_path / "s", PLAIN) as writer:
        readers = [
            subprocess.Popen([sys.executable, "-c", READING, tmp_path / "s"], stdout=subprocess.PIPE) for _ in range(3)
        ]
        before = sorted(path.name for path in (tmp_path / "s").iterdir())
        assert before == [".lock", "manifest.json"]
        assert all(reader.stdout.readline() == b"open\n" for reader in readers)
        for first in range(0, 200, 4):
            writer.add_shard(passages[first : first + 4])
        writer.finish()
    for reader in readers:
        shown, _ = reader.communicate(timeout=120)
        assert reader.returncode == 0
        assert shown.endswith(b"open\n200\n")


def forge(directory: Path, name: str, change) -> None:
    """Changes the tensors of a file and brings its entry in the manifest up to date."""
    path = directory / name
    tensors = {tensor: values.copy() for tensor, values in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    record = json.loads((directory / "manifest.json").read_text())
    entries = [
        *record["shards"],
        *([record["tables"]] if record["tables"] else []),
        *([record["index"]] if record["index"] else []),
    ]
    entry = next(entry for entry in entries if entry["file"] == name)
    entry.update(bytes=path.stat().st_size, sha256=file_digest(path))
    (directory / "manifest.json").write_text(json.dumps(record))


def put(name, index, value):
    def change(tensors):
        tensors[name][index] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("shard-00000", put("slots", 0, 255), "a slot is not below"),
        ("shard-00000", put("slots", slice(0, 2), 0), "states that no token went to"),
        ("shard-00000", put("kept_ids", 0, 90), r"token ids must be in 0\.\.89"),
        ("tables", put("mask", 0, 0), "each mask must have 9 bits"),
        ("tables", put("majority", (3, 2), 255), "pad bits beyond channel 20"),
        ("tables", lambda t: t.update(mask=t["mask"][:, :2].copy()), r"mask must be uint8 \(90, 3\)"),
        ("tables", lambda t: t.update(mask=t["mask"].astype(np.int16)), r"mask must be uint8 \(90, 3\)"),
        ("tables", lambda t: t.pop("majority"), "majority must be .* got none"),
    ],
)
def test_damage_is_met_by_a_fetch(tmp_path, name, change, match):
    wanted = replace(PLAIN, keep=0.5, masked_bits=9, original_ids=False)
    passages = random_passages(wanted, 4)
    # One passage of two tokens, so that the change of its slots leaves a state without a token.
    passages[0] = EncodedPassage("first", passages[0].states[:2], [1, 2], torch.tensor([0, 1]))
    write(tmp_path, wanted, passages)
    forge(tmp_path, f"{name}.safetensors", change)
    with pytest.raises(ValueError, match=f"{name}.safetensors: damaged file: .*{match}"):
        Store(tmp_path).fetch([["first"]])


def test_damage_that_only_verify_meets(tmp_path):
    wanted = replace(PLAIN, masked_bits=9)
    passages = random_passages(wanted, 4)
    write(tmp_path, wanted, passages)
    forge(tmp_path, "shard-00000.safetensors", put("codes", (0, 1), 0xFF))
    with pytest.raises(ValueError, match="bits beyond the 9 of a code are set"):
        Store(tmp_path).verify(0)
    content = bytearray((tmp_path / "tables.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "tables.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"tables.safetensors: damaged file: its SHA-256"):
        Store(tmp_path).verify_side_files()
    with pytest.raises(ValueError, match=r"tables.safetensors: damaged file: its SHA-256"):
        StoreWriter(tmp_path, wanted).__enter__()
    (tmp_path / "tables.safetensors").unlink()
    with pytest.raises(ValueError, match=r"tables.safetensors: the file is missing"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"masked_bits": 21}, r"masked_bits must be in 0\.\.20"),
        ({"masked_bits": -1}, r"masked_bits must be in 0\.\.20"),
        ({"codebook_bytes": float("nan")}, "codebook_bytes must be finite"),
        ({"codebook_bytes": -1.0}, "codebook_bytes must be finite"),
        ({"kind": "float32", "masked_bits": 3}, "are for binary stores"),
        ({"codebook_bytes": 9.0, "masked_bits": 3}, "exclude each other"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(PLAIN, **changes)


def test_a_manifest_and_its_files_go_together(tmp_path):
    write(tmp_path, replace(PLAIN, masked_bits=9), random_passages(PLAIN, 4))
    path = tmp_path / "manifest.json"
    record = json.loads(path.read_text())
    plain = {**record["settings"], "masked_bits": 0}
    shared = {**plain, "codebook_bytes": 4.0}
    entry = record["tables"]
    for change, match in [
        ({"tables": None}, "though masked_bits is 9"),
        ({"settings": plain}, "though masked_bits is 0"),
        ({"settings": {**plain, "masked_bits": 99}}, "masked_bits must be in"),
        ({"settings": shared, "tables": None}, "shards without the codebook"),
        ({"settings": shared, "tables": None, "codebook": {"index_bytes": 3, "files": [entry]}}, "index_bytes"),
        ({"settings": shared, "tables": None, "codebook": {"index_bytes": 1, "files": []}}, "at least one file"),
        ({"tables": {**entry, "file": "/etc/passwd.safetensors"}}, "plain safetensors name"),
        ({"appended": [{"sha256": "d", "first_shard": 7}]}, "names shards that are not there"),
    ]:
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(ValueError, match=f"manifest.json: damaged manifest: .*{match}"):
            Store(tmp_path)


def test_a_new_store_with_masked_bits_needs_tables(tmp_path):
    wanted = replace(PLAIN, masked_bits=9)
    with pytest.raises(ValueError, match="tables: a new store needs tables of 9 stored bits"):
        StoreWriter(tmp_path / "s", wanted).__enter__()
    with pytest.raises(ValueError, match="tables: a new store needs tables of 9 stored bits"):
        StoreWriter(tmp_path / "s", wanted, tables=random_tables(replace(wanted, masked_bits=8))).__enter__()


def test_files_are_appended_one_after_the_other(tmp_path):
    first, second = random_passages(PLAIN, 6, 1), random_passages(PLAIN, 5, 2)
    other = replace(PLAIN, corpus="d")
    with pytest.raises(ValueError, match="no store to append to"):
        StoreWriter(tmp_path, PLAIN, append=True).__enter__()
    with StoreWriter(tmp_path, PLAIN) as writer:
        writer.add_shard(first[:4])
    with pytest.raises(ValueError, match="incomplete: corpus is 'c', asked for 'd'; finish that one first"):
        StoreWriter(tmp_path, other, append=True).__enter__()
    write(tmp_path, PLAIN, first)
    with pytest.raises(ValueError, match="complete: corpus is 'c', asked for 'd'; append to add another"):
        StoreWriter(tmp_path, other).__enter__()
    with pytest.raises(ValueError, match=r"other settings: keep is 1\.0, asked for 0\.5$"):
        StoreWriter(tmp_path, replace(other, keep=0.5), append=True).__enter__()
    with StoreWriter(tmp_path, other, append=True) as writer:
        assert (writer.done, writer.complete) == (0, False)
        writer.add_shard(second[:4])
    assert len(Store(tmp_path)) == 10
    with StoreWriter(tmp_path, other) as writer:
        assert (writer.done, writer.complete) == (4, False)
        writer.add_shard(second[4:])
        writer.finish()
    with StoreWriter(tmp_path, PLAIN) as writer:
        assert writer.complete
    store = Store(tmp_path)
    assert [p.id for p in first + second] == store.passage_ids()
    assert [(c.sha256, c.first_shard) for c in store.manifest.corpora] == [("c", 0), ("d", 2)]


def test_ids_with_equal_hashes_are_told_apart(tmp_path, monkeypatch):
    """BLAKE2b is cut to one bit, so that nearly every lookup meets another passage's hash."""

    def id_hashes(ids):
        return np.array([len(passage_id) % 2 for passage_id in ids], dtype=np.uint64)

    monkeypatch.setattr("btr_reader.store.index.id_hashes", id_hashes)
    monkeypatch.setattr("btr_reader.store.writer.id_hashes", id_hashes)
    passages = random_passages(PLAIN, 14)
    write(tmp_path, PLAIN, passages)
    store = Store(tmp_path)
    for passage in passages:
        assert torch.equal(store.passage(passage.id).states, passage.states)
    assert "é0-99" not in store
    assert "" not in store
    with pytest.raises(KeyError, match="'é0-99' is not in the store"):
        store.fetch([[passages[0].id, "é0-99"]])
    with StoreWriter(tmp_path / "twice", PLAIN) as writer:
        writer.add_shard(passages[:3])
        writer.add_shard(passages[2:4])
        with pytest.raises(ValueError, match="passage id 'é0-2' occurs twice"):
            writer.finish()
    with pytest.raises(ValueError, match="passage id 'é0-2' occurs twice"):
        Store(tmp_path / "twice").passage_ids()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put("rows", slice(None), 50), "damaged file: it names row 50 of shard"),
        (put("shards", slice(None), 50), "damaged file: it names row . of shard 50"),
        (put("hashes", slice(None), 0), "damaged index: it lacks passage"),
        (put("rows", slice(None), 0), "damaged index: it lacks passage"),
        (lambda t: t.update(rows=t["rows"][:-1].copy()), r"rows must be uint32 \(6,\)"),
        (lambda t: t.update(hashes=t["hashes"].astype(np.int64)), r"hashes must be uint64 \(6,\)"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, change, match):
    passages = random_passages(PLAIN, 6)
    write(tmp_path, PLAIN, passages)
    forge(tmp_path, "index-00002.safetensors", change)
    with pytest.raises(ValueError, match=match):
        Store(tmp_path).verify_side_files()


def test_a_reader_of_before_an_append_goes_on(tmp_path):
    first, second = random_passages(PLAIN, 6, 1), random_passages(PLAIN, 5, 2)
    write(tmp_path, PLAIN, first)
    before = Store(tmp_path)
    for _ in range(2):
        with StoreWriter(tmp_path, replace(PLAIN, corpus="d"), append=True) as writer:
            if not writer.complete:
                writer.add_shard(second)
                writer.finish()
    assert not (tmp_path / "index-00002.safetensors").exists()
    assert torch.equal(before.passage(first[5].id).states, first[5].states)
    assert second[0].id not in before
    assert torch.equal(Store(tmp_path).passage(second[4].id).states, second[4].states)
