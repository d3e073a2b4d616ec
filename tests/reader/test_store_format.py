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

from btr_reader.settings import ReaderSettings
from btr_reader.store import EncodedPassage, Store, StoreSettings, StoreWriter, load_manifest, store_report

PLAIN = StoreSettings(
    reader="r",
    corpus="c",
    vocabulary=90,
    channels=20,
    cut=ReaderSettings(2),
    kind="binary",
    keep=1.0,
    same_id_first=False,
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


def write(directory: Path, wanted: StoreSettings, passages: list[EncodedPassage]) -> None:
    with StoreWriter(directory, wanted) as writer:
        for first in range(writer.done, len(passages), wanted.shard_passages):
            writer.add_shard(passages[first : first + wanted.shard_passages])
        if not writer.complete:
            writer.finish()


layouts = st.builds(
    replace,
    st.just(PLAIN),
    kind=st.sampled_from(["binary", "float32", "float16"]),
    keep=st.sampled_from([1.0, 0.5]),
    original_ids=st.booleans(),
    vocabulary=st.sampled_from([90, 70_000]),
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
        assert torch.equal(found.states, passage.states)
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
            assert torch.equal(batch.content[query, number, :kept], passage.states.to(batch.content.dtype))
            assert not batch.content[query, number, kept:].any()
            slots = range(kept) if passage.slots is None else passage.slots.tolist()
            for slot in range(kept):
                members = [position for position, went_to in enumerate(slots) if went_to == slot]
                assert batch.sizes[query, number, slot] == len(members)
                assert (slot if batch.positions is None else batch.positions[query, number, slot]) == members[0]
            assert not batch.sizes[query, number, kept:].any()
    for number in range(len(store.manifest.shards)):
        store.verify(number)
    report = store_report(directory)
    assert report["bytes"]["total"] == sum(path.stat().st_size for path in directory.iterdir())
    assert min(report["bytes"].values()) >= 0
    assert report["bytes"]["overhead"] < 4000
    assert report["bytes"]["token ids"] == report["original_tokens"] * (
        0 if not wanted.original_ids else 2 if wanted.vocabulary == 90 else 4
    )


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


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_a_failure_at_any_step_loses_nothing_that_was_written(tmp_path, monkeypatch, error):
    wanted = replace(PLAIN, keep=0.5)
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
                with StoreWriter(directory, wanted) as writer:
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


def test_damage_that_only_a_fetch_meets_is_an_error(tmp_path):
    from safetensors.numpy import load_file, save_file

    wanted = replace(PLAIN, keep=0.5)
    passages = random_passages(wanted, 4)
    write(tmp_path, wanted, passages)
    path = tmp_path / "shard-00000.safetensors"
    tensors = load_file(path)
    tensors["slots"][0] = 255
    save_file(tensors, path)
    record = json.loads((tmp_path / "manifest.json").read_text())
    record["shards"][0]["bytes"] = path.stat().st_size
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"shard-00000.safetensors: damaged file: a slot is not below"):
        Store(tmp_path).fetch([[passages[0].id]])


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
