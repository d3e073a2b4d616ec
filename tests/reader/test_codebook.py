"""Codebooks: vectors that tokens of one vocabulary id share across the corpus."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from btr_reader import codebooks
from btr_reader.codebooks import allocate_vectors, cluster
from btr_reader.digests import file_digest
from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.store import Store, StoreWriter, load_manifest, store_report


def encoder_of(reader, **changes):
    return PassageEncoder(reader, **{"passage_length": 32, **changes})


def encode(reader, corpus, out, codebook_bytes, **changes):
    options = {name: changes.pop(name) for name in ("memory_bytes",) if name in changes}
    encoder = encoder_of(reader, codebook_bytes=codebook_bytes, **changes)
    return encode_corpus(encoder, corpus, out, shard_passages=16, progress=False, **options)


@pytest.fixture(scope="module")
def plain(reader, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "s"
    encode_corpus(encoder_of(reader), corpus, out, shard_passages=16, progress=False)
    return Store(out)


@pytest.fixture(scope="module")
def shared(reader, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "s"
    assert encode(reader, corpus, out, 13) == 40
    return out


def tokens_by_id(store):
    found = {}
    for passage_id in store.passage_ids():
        passage = store.passage(passage_id)
        for token_id, bits in zip(passage.token_ids.tolist(), passage.states, strict=True):
            found.setdefault(token_id, []).append(bits.tolist())
    return found


def distance(one, other):
    return sum(bin(a ^ b).count("1") for a, b in zip(one, other, strict=True))


def test_every_token_has_the_nearest_vector_of_its_id(plain, shared):
    store = Store(shared)
    assert store.manifest.complete
    assert store.passage_ids() == plain.passage_ids()
    vectors = {token_id: store.code.vectors_of(token_id).tolist() for token_id in tokens_by_id(plain)}
    flips = 0
    for passage_id in plain.passage_ids():
        wanted, found = plain.passage(passage_id), store.passage(passage_id)
        assert found.token_ids.tolist() == wanted.token_ids.tolist()
        for token_id, bits, got in zip(wanted.token_ids.tolist(), wanted.states, found.states, strict=True):
            least = min(distance(bits.tolist(), vector) for vector in vectors[token_id])
            assert distance(bits.tolist(), got.tolist()) == least
            flips += least
    assert flips > 0
    for number in range(len(store.manifest.shards)):
        store.verify(number)
    store.verify_side_files()
    report = store_report(shared)
    assert 11 < report["bytes_per_token"]["total"] <= 13
    assert report["bytes"]["total"] == sum(path.stat().st_size for path in shared.iterdir())
    assert not (shared / "work").exists()


def test_enough_vectors_lose_nothing(reader, corpus, plain, tmp_path):
    encode(reader, corpus, tmp_path / "s", 60)
    ids = [plain.passage_ids()]
    assert torch.equal(Store(tmp_path / "s").fetch(ids).content, plain.fetch(ids).content)


def test_too_few_bytes_are_refused_and_more_continue(reader, corpus, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"codebook_bytes: 4 bytes per token read are too few: .* take \d+\.\d\d"):
        encode(reader, corpus, tmp_path / "s", 4)
    assert not Store(tmp_path / "s").manifest.complete
    # What was encoded is not encoded again.
    monkeypatch.setattr(PassageEncoder, "batches", None)
    assert encode(reader, corpus, tmp_path / "s", 14) == 40
    assert encode(reader, corpus, tmp_path / "s", 14) == 0
    with pytest.raises(ValueError, match="codebook_bytes is 14.0, asked for 13.0"):
        encode(reader, corpus, tmp_path / "s", 13)
    with pytest.raises(ValueError, match="append: a codebook is made of a whole corpus"):
        StoreWriter(tmp_path / "s", load_manifest(tmp_path / "s").settings, append=True)


def test_merging_and_a_codebook(reader, corpus, tmp_path):
    merging = {"keep": 0.5, "original_ids": False}
    encode_corpus(encoder_of(reader, **merging), corpus, tmp_path / "plain", progress=False)
    encode(reader, corpus, tmp_path / "s", 60, **merging)
    plain, store = Store(tmp_path / "plain"), Store(tmp_path / "s")
    ids = [plain.passage_ids()]
    for name in ("content", "sizes", "positions"):
        assert torch.equal(getattr(store.fetch(ids), name), getattr(plain.fetch(ids), name))
    with pytest.raises(ValueError, match="--original-ids drop"):
        store.fetch_tokens(ids)


def test_little_memory_makes_more_files_of_the_same_vectors(reader, corpus, plain, shared, tmp_path):
    most = max(map(len, tokens_by_id(plain).values()))
    encode(reader, corpus, tmp_path / "s", 13, memory_bytes=4 * 6 * (most + 20))
    few, many = Store(shared), Store(tmp_path / "s")
    assert len(few.manifest.codebook.files) == 1
    assert len(many.manifest.codebook.files) > 2
    ids = [plain.passage_ids()]
    assert torch.equal(few.fetch(ids).content, many.fetch(ids).content)
    # Less than an id's tokens take: a sample of them is clustered.
    encode(reader, corpus, tmp_path / "least", 13, memory_bytes=4 * 6 * 10)
    assert Store(tmp_path / "least").fetch(ids).content.shape == few.fetch(ids).content.shape


class Killed(BaseException):
    pass


def test_a_kill_at_any_step_is_continued(reader, corpus, plain, shared, tmp_path, monkeypatch):
    """The encoder runs once: its store of plain bits is put where a killed run would have left it."""
    work = plain.directory
    # Vectors and their files are the same however many runs made them, so long as each has the same memory.
    most = max(map(len, tokens_by_id(plain).values()))
    memory = 4 * 6 * 3 * most
    expected = None
    for step in itertools.count(1):
        out = tmp_path / f"at-{step}"
        calls = []

        def dies(name, real, calls=calls, step=step):
            def call(*arguments, **options):
                calls.append(name)
                if len(calls) == step:
                    raise Killed
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rmdir"):
                patch.setattr(os, name, dies(name, getattr(os, name)))
            try:
                with StoreWriter(out, encoder_of(reader, codebook_bytes=13).store_settings(
                    load_manifest(work).settings.corpus, 16
                )):  # fmt: skip
                    shutil.copytree(work, out / "work")
                encode(reader, corpus, out, 13, memory_bytes=memory)
            except Killed:
                pass
        finished = len(calls) < step
        if (out / "manifest.json").exists():
            store = Store(out)
            for number in range(len(store.manifest.shards)):
                store.verify(number)
            shutil.copytree(work, out / "work", dirs_exist_ok=True)
        encode(reader, corpus, out, 13, memory_bytes=memory)
        content = {path.name: path.read_bytes() for path in out.iterdir()}
        expected = expected or content
        assert content == expected
        if finished:
            break
    assert step > 15


@given(st.lists(st.integers(0, 500), min_size=1, max_size=40), st.integers(0, 3000))
@settings(deadline=None)
def test_allocation_keeps_to_the_budget(counts, budget):
    counts = np.array(counts)
    present = int((counts > 0).sum())
    if budget < present:
        with pytest.raises(ValueError, match="budget must be at least"):
            allocate_vectors(counts, budget)
        return
    vectors = allocate_vectors(counts, budget)
    assert vectors.sum() <= budget
    assert (vectors <= counts).all()
    assert ((vectors > 0) == (counts > 0)).all()
    assert all(
        vectors[a] <= vectors[b] for a, b in itertools.permutations(range(len(counts)), 2) if counts[a] <= counts[b]
    )
    if budget >= counts.sum():
        assert (vectors == counts).all()


def test_clusters_are_found():
    random = np.random.default_rng(0)
    centres = random.integers(0, 256, (4, 16), dtype=np.uint8)
    noise = np.packbits(random.random((400, 128)) < 0.05, axis=1)
    tokens = centres[random.integers(0, 4, 400)] ^ noise
    found = cluster(tokens, 12, seed=0)
    assert found.shape == (12, 16)
    # Twelve beginnings find all four centres, but for bits whose votes are few.
    for centre in centres.tolist():
        assert min(distance(centre, vector) for vector in found.tolist()) <= 6
    assert np.array_equal(cluster(tokens, 12, seed=0), found)
    same = np.repeat(tokens[:3], 4, axis=0)
    assert len(cluster(same, 12, seed=0)) == 3


def forge(directory, change):
    path = directory / "codebook-00000.safetensors"
    tensors = {name: values.copy() for name, values in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    manifest = load_manifest(directory)
    entry = replace(manifest.codebook.files[0], bytes=path.stat().st_size, sha256=file_digest(path))
    replace(manifest, codebook=replace(manifest.codebook, files=(entry,))).save(directory)


def shrink_every_id(tensors):
    kept = tensors["counts"].cumsum()[tensors["counts"] > 0] - 1
    tensors.update(counts=(tensors["counts"] > 0).astype(np.int32), vectors=tensors["vectors"][kept].copy())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (shrink_every_id, "shard-0000.*: damaged file: an index is not below"),
        (lambda t: t.update(counts=t["counts"][:-1].copy()), "damaged codebook: it has .* vocabulary ids, expected"),
        (lambda t: t.update(counts=-t["counts"]), "codebook-00000.safetensors: .*must not be negative"),
        (lambda t: t.update(counts=t["counts"].astype(np.int64)), "codebook-00000.safetensors: .*counts must be int32"),
        (lambda t: t.update(counts=t["counts"].reshape(1, -1)), "codebook-00000.safetensors: .*counts must be int32"),
        (lambda t: t["counts"].__setitem__(0, 2**30), "codebook-00000.safetensors: .*vectors must be uint8"),
        (lambda t: t.pop("vectors"), "codebook-00000.safetensors: .*vectors must be uint8"),
        (lambda t: t["vectors"].__setitem__((0, -1), 255), "damaged codebook: pad bits are set"),
    ],
)
def test_a_damaged_codebook_is_named(shared, tmp_path, change, match):
    directory = shutil.copytree(shared, tmp_path / "s")
    forge(directory, change)
    with pytest.raises(ValueError, match=match):
        store = Store(directory)
        store.fetch([store.passage_ids()])
        store.verify_side_files()


def test_memory_is_bounded_by_ranges_of_ids(plain, monkeypatch, reader, corpus, tmp_path):
    """No range holds more tokens than the memory allows, unless it is of a single id."""
    seen = []
    real = codebooks._sample

    def watched(*arguments):
        rows, ids = real(*arguments)
        seen.append((len(rows), len(np.unique(ids))))
        return rows, ids

    monkeypatch.setattr(codebooks, "_sample", watched)
    room = 40
    encode(reader, corpus, tmp_path / "s", 13, memory_bytes=4 * 6 * room)
    assert len(seen) > 5
    # Of an id with more tokens a sample is drawn that has about as many as there is room for.
    assert all(rows <= room or (ids == 1 and rows < 2 * room) for rows, ids in seen)
