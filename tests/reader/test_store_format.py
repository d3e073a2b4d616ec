"""The store by itself, without a reader: random passages through every layout, kills between any two steps, readers."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btr_reader.store import Store, StoreWriter, load_manifest, store_report

from .random_stores import PLAIN, random_passages, random_tables, restored, write

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
    with pytest.raises(ValueError, match="complete: corpus is 'c', asked for 'd'; --append adds another"):
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
