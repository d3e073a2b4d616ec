"""The store: what is written is read back, survives kills, and is never believed when damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import btr_kernels
from btr_reader.batches import pad_passages
from btr_reader.digests import file_digest
from btr_reader.encoder import FusionEncoder
from btr_reader.encoding import PassageEncoder, calibrate_residual_scale, encode_corpus
from btr_reader.jsonl import write_jsonl
from btr_reader.passages import read_passages
from btr_reader.store import Store, StoreWriter, load_manifest


@pytest.fixture
def store_copy(store_directory, tmp_path):
    return shutil.copytree(store_directory, tmp_path / "store")


def encoder_of(reader, **changes):
    return PassageEncoder(reader, **{"keep": 0.5, "passage_length": 32, **changes})


@torch.inference_mode()
def states_of(reader, passage, length):
    ids = torch.tensor([reader.tokenizer.encode_passage(passage.reader_text, length)])
    return ids[0], FusionEncoder(reader.model).passage_states(ids, torch.ones_like(ids), reader.settings)


@pytest.mark.parametrize("kind", ["binary", "float32", "float16"])
def test_states_are_those_of_the_reader(reader, corpus, tmp_path, passages, kind):
    encode_corpus(encoder_of(reader, kind=kind, keep=1.0), corpus, tmp_path / "s", shard_passages=7, progress=False)
    store = Store(tmp_path / "s")
    assert store.manifest.complete
    assert store.passage_ids() == [p.id for p in passages]
    batch = store.fetch([[p.id for p in passages]])
    assert batch.positions is None
    flips = 0
    for row, passage in enumerate(passages):
        ids, expected = states_of(reader, passage, 32)
        assert store.passage(passage.id).token_ids.tolist() == ids.tolist()
        assert batch.sizes[0, row].tolist() == [1] * len(ids) + [0] * (batch.sizes.shape[2] - len(ids))
        got = batch.content[0, row, : len(ids)]
        if kind == "binary":
            flips += int(
                (
                    btr_kernels.unpack_bits(got, 44) != btr_kernels.unpack_bits(btr_kernels.pack_bits(expected[0]), 44)
                ).sum()
            )
        else:
            assert got.dtype == torch.float32
            tolerance = 2e-5 if kind == "float32" else 5e-3
            torch.testing.assert_close(got, expected[0], rtol=tolerance, atol=tolerance)
    # Padding changes the order of sums, which may flip the sign of a channel that is all but zero.
    assert flips <= 2


@torch.inference_mode()
def test_merged_states_are_those_of_the_matching(reader, store_directory, passages):
    store = Store(store_directory)
    for passage in passages[:5]:
        ids, states = states_of(reader, passage, 32)
        bits = btr_kernels.pack_bits(states)
        plan = btr_kernels.match_tokens(bits, 0.5)
        merged, sizes = btr_kernels.merge_bits(bits, plan)
        stored = store.passage(passage.id)
        assert stored.token_ids.tolist() == ids.tolist()
        assert stored.slots.tolist() == plan.slot[0].tolist()
        assert torch.equal(stored.states, merged[0])
        batch = store.fetch([[passage.id]])
        assert batch.sizes[0].tolist() == sizes.tolist()
        first = [plan.slot[0].tolist().index(slot) for slot in range(len(stored.states))]
        assert batch.positions[0, 0].tolist() == first


def test_a_batch_pads_passages_and_queries(store_directory, passages):
    store = Store(store_directory)
    batch = store.fetch([[passages[0].id, passages[1].id], [passages[2].id]])
    assert batch.content.shape[:2] == (2, 2)
    assert batch.sizes[1, 1].sum() == 0
    tokens = store.fetch_tokens([[passages[0].id, passages[1].id], [passages[2].id]])
    assert torch.equal(batch.sizes.sum(2), tokens.sizes.sum(2))
    with pytest.raises(KeyError, match="'nowhere' is not in the store"):
        store.fetch([["nowhere"]])
    assert "nowhere" not in store
    with pytest.raises(ValueError, match="at least one passage for every query"):
        store.fetch([[passages[0].id], []])


def test_keep_is_one_only_where_every_token_is_kept(reader, corpus, tmp_path):
    merged = encoder_of(reader, keep=0.999999)
    encode_corpus(merged, corpus, tmp_path / "merged", shard_passages=64, progress=False)
    encode_corpus(encoder_of(reader, keep=1.0), corpus, tmp_path / "plain", shard_passages=64, progress=False)
    one, other = Store(tmp_path / "merged"), Store(tmp_path / "plain")
    ids = [other.passage_ids()[:6]]
    assert torch.equal(one.fetch(ids).content, other.fetch(ids).content)
    assert torch.equal(one.fetch(ids).sizes, other.fetch(ids).sizes)


def test_encoding_stopped_and_continued_gives_the_same_bytes(reader, corpus, store_directory, tmp_path, monkeypatch):
    out = tmp_path / "store"
    real = PassageEncoder.batches
    chunks = []

    def dies_in_the_third_shard(self, chunk, batch_size):
        chunks.append(len(chunk))
        if len(chunks) == 3:
            raise KeyboardInterrupt
        yield from real(self, chunk, batch_size)

    monkeypatch.setattr(PassageEncoder, "batches", dies_in_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(encoder_of(reader), corpus, out, shard_passages=16, progress=False)
    monkeypatch.undo()
    partial = Store(out)
    assert len(partial) == 32
    assert not partial.manifest.complete
    for number in range(2):
        partial.verify(number)
    # What a kill in the middle of a write leaves: half a shard under a temporary name, half a manifest.
    (out / "shard-00002.safetensors.tmp").write_bytes(b"half")
    (out / "manifest.json.tmp").write_bytes(b"{")
    assert encode_corpus(encoder_of(reader), corpus, out, shard_passages=16, progress=False) == 8
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in store_directory.iterdir())
    for path in store_directory.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert encode_corpus(encoder_of(reader), corpus, out, shard_passages=16, progress=False) == 0


def test_a_shard_without_its_manifest_entry_is_written_again(reader, corpus, store_copy, store_directory):
    """A kill between the shard's rename and the manifest's."""
    record = json.loads((store_copy / "manifest.json").read_text())
    record["shards"].pop()
    record.update(complete=False, index=None)
    (store_copy / "manifest.json").write_text(json.dumps(record))
    assert len(Store(store_copy)) == 32
    encode_corpus(encoder_of(reader), corpus, store_copy, shard_passages=16, progress=False)
    assert load_manifest(store_copy) == load_manifest(store_directory)


def test_sigkill_leaves_a_usable_store(reader_directory, tmp_path, passages):
    corpus, out = tmp_path / "passages.jsonl", tmp_path / "store"
    write_jsonl(corpus, ({"id": f"p{i}", "text": passages[i % len(passages)].text} for i in range(3000)))
    code = "import sys, torch; torch.set_num_threads(1)\nfrom btr_reader.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "encode", corpus, "--reader", reader_directory, "--out", out]
    command += ["--shard-passages", "50", "--passage-length", "32"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(out.glob("shard-*.safetensors"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = Store(out)
    assert 2 <= len(store.manifest.shards) < 60
    assert len(store) == 50 * len(store.manifest.shards)
    for number in range(len(store.manifest.shards)):
        store.verify(number)
    assert store.fetch([["p7", "p99"]]).sizes.any()


def test_a_full_disk_keeps_what_is_there(reader, corpus, tmp_path, monkeypatch):
    out, real, calls = tmp_path / "store", os.fsync, []

    def full_after_a_while(descriptor):
        calls.append(descriptor)
        # File and directory are synced: the first manifest, shard 0, its manifest, and then shard 1's file fails.
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_a_while)
    with pytest.raises(OSError, match=r"cannot write .*shard-.*No space left on device"):
        encode_corpus(encoder_of(reader), corpus, out, shard_passages=16, progress=False)
    monkeypatch.undo()
    store = Store(out)
    assert len(store) >= 16
    assert not list(out.glob("*.tmp"))
    for number in range(len(store.manifest.shards)):
        store.verify(number)
    encode_corpus(encoder_of(reader), corpus, out, shard_passages=16, progress=False)
    assert Store(out).manifest.complete


def test_other_settings_are_refused_and_named(reader, make_reader, corpus, store_copy, tmp_path):
    def expect(match, encoder, file=corpus, shard_passages=16):
        with pytest.raises(ValueError, match=match):
            encode_corpus(encoder, file, store_copy, shard_passages=shard_passages, progress=False)

    expect("keep is 0.5, asked for 0.7", encoder_of(reader, keep=0.7))
    expect("kind is 'binary', asked for 'float32'", encoder_of(reader, kind="float32"))
    expect("passage_length is 32, asked for 31", encoder_of(reader, passage_length=31))
    expect("shard_passages is 16, asked for 8", encoder_of(reader), shard_passages=8)
    expect("reader is .*cut is", encoder_of(make_reader(3)))
    other = tmp_path / "other.jsonl"
    other.write_text(corpus.read_text() + "\n")
    expect("complete: corpus is", encoder_of(reader), other)


def test_a_second_corpus_is_appended(reader, corpus, store_copy, tmp_path, passages):
    more = tmp_path / "more.jsonl"
    write_jsonl(more, ({"id": f"more-{p.id}", "title": p.title, "text": p.text} for p in passages[:20]))

    def encode(file, encoder, **options):
        return encode_corpus(encoder, file, store_copy, shard_passages=16, progress=False, **options)

    with pytest.raises(ValueError, match="--append adds another"):
        encode(more, encoder_of(reader))
    with pytest.raises(ValueError, match="same_id_first is False, asked for True"):
        encode(more, encoder_of(reader, same_id_first=True), append=True)
    repeated = tmp_path / "repeated.jsonl"
    repeated.write_text(more.read_text() + corpus.read_text().splitlines()[7] + "\n")
    with pytest.raises(ValueError, match=re.escape(f"passage id {passages[7].id!r} is in the store")):
        encode(repeated, encoder_of(reader), append=True)
    assert encode(more, encoder_of(reader), append=True) == 20
    assert encode(more, encoder_of(reader), append=True) == 0
    assert encode(corpus, encoder_of(reader)) == 0
    store = Store(store_copy)
    assert store.passage_ids() == [p.id for p in passages] + [f"more-{p.id}" for p in passages[:20]]
    batch = store.fetch([[passages[3].id, f"more-{passages[3].id}"]])
    # The same text in another batch: padding may flip the sign of a channel that is all but zero.
    assert int(btr_kernels.hamming_distance(*batch.content[0].split(1)).diagonal(dim1=1, dim2=2).sum()) <= 2


def test_equal_ids_first_merges_equal_ids(reader, corpus, tmp_path):
    encoder = encoder_of(reader, same_id_first=True, keep=0.9, original_ids=False)
    encode_corpus(encoder, corpus, tmp_path / "first", progress=False)
    encode_corpus(encoder_of(reader, keep=1.0), corpus, tmp_path / "plain", progress=False)
    first, plain = Store(tmp_path / "first"), Store(tmp_path / "plain")
    pairs = 0
    for passage_id in first.passage_ids():
        slots, ids = first.passage(passage_id).slots, plain.passage(passage_id).token_ids
        repeats = len(ids) - ids.unique().numel()
        surplus = len(ids) - len(first.passage(passage_id).states)
        merged = [ids[slots == slot].unique().numel() == 1 for slot in slots.unique()]
        if repeats >= surplus:
            assert all(merged)
            pairs += surplus
    assert pairs > 10
    with pytest.raises(ValueError, match="--original-ids drop"):
        first.fetch_tokens([[passage_id]])


def test_two_writers_are_refused(reader, store_copy):
    settings = load_manifest(store_copy).settings
    with StoreWriter(store_copy, settings), pytest.raises(ValueError, match="another process is writing"):
        StoreWriter(store_copy, settings).__enter__()


def test_a_directory_that_is_no_store_is_left_alone(reader, corpus, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not a store"):
        encode_corpus(encoder_of(reader), corpus, tmp_path, progress=False)
    with pytest.raises(ValueError, match="is a file"):
        encode_corpus(encoder_of(reader), corpus, tmp_path / "thesis.txt", progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def rewrite(path, change):
    """Changes a shard's tensors and brings the manifest's size and checksum up to date: a consistent forgery."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    manifest = path.parent / "manifest.json"
    record = json.loads(manifest.read_text())
    entry = next(shard for shard in record["shards"] if shard["file"] == path.name)
    entry.update(bytes=path.stat().st_size, sha256=file_digest(path))
    manifest.write_text(json.dumps(record))


def drop(name):
    return lambda tensors: tensors.pop(name)


def assign(name, index, value):
    def change(tensors):
        tensors[name][index] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop("slots"), "tensor slots must be"),
        (drop("id_bytes"), "tensor id_bytes must be"),
        (lambda t: t.update(states=t["states"].to(torch.int16)), "tensor states must be uint8"),
        (lambda t: t.update(states=t["states"][:-1].clone()), "tensor states must be"),
        (assign("lengths", 2, 60000), "lengths must be at least 1 each and"),
        (assign("lengths", 0, 0), "lengths must be at least 1 each and"),
        (assign("kept_lengths", 1, 0), "kept_lengths must be at least 1 each and"),
        (assign("id_lengths", -1, 3), "id_lengths must be at least 0 each and"),
        (assign("slots", 3, 200), "a slot is not below"),
        (lambda t: t["slots"][:32].fill_(0), "states that no token went to"),
        (assign("id_bytes", 0, 0xFF), "not UTF-8"),
        (assign("token_ids", 0, 60000), "token ids must be in 0.."),
        (assign("states", (0, -1), 0xFF), "pad bits beyond channel 44"),
    ],
)
def test_an_inconsistent_shard_is_named(store_copy, change, match):
    rewrite(store_copy / "shard-00001.safetensors", change)
    with pytest.raises(ValueError, match=f"shard-00001.safetensors: damaged file: .*{match}"):
        Store(store_copy).verify(1)


def test_a_repeated_id_across_shards_is_named(store_copy, passages):
    shutil.copy(store_copy / "shard-00000.safetensors", store_copy / "shard-00001.safetensors")
    record = json.loads((store_copy / "manifest.json").read_text())
    record["shards"][1] = {**record["shards"][0], "file": "shard-00001.safetensors"}
    (store_copy / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=re.escape(f"{passages[0].id!r} occurs twice")):
        Store(store_copy).passage_ids()


def test_tampering_and_truncation_are_named(store_copy):
    path = store_copy / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00002.safetensors: damaged file: its SHA-256"):
        Store(store_copy).verify(2)
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"shard-00002.safetensors: damaged file: \d+ bytes, expected \d+"):
        Store(store_copy)
    path.unlink()
    with pytest.raises(ValueError, match=r"shard-00002.safetensors: the file is missing"):
        Store(store_copy)


def test_a_broken_safetensors_header_is_named(store_copy):
    path = store_copy / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[:8] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000.safetensors: damaged file"):
        Store(store_copy).passage_ids()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 3}, "version 3 is newer than the 2"),
        ({"version": 1}, "version 1 is no longer read"),
        ({"version": "1"}, "damaged manifest: version '1'"),
        ({"format": "zip"}, "not the manifest of a btr-store"),
        ({"shards": {}}, "shards must be a list"),
        ({"shards": [{"file": "a"}]}, "a Shard must have"),
        ({"complete": 1}, "complete must be a bool"),
        ({"settings": None}, "settings must be a dict"),
    ],
)
def test_a_damaged_manifest_is_named(store_copy, change, match):
    path = store_copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"manifest.json: .*{match}"):
        Store(store_copy)


def test_a_manifest_cannot_point_outside_its_store(store_copy):
    path = store_copy / "manifest.json"
    record = json.loads(path.read_text())
    record["shards"][0]["file"] = "../store/shard-00000.safetensors"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="must be a plain safetensors name"):
        Store(store_copy)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json: damaged manifest"):
        Store(store_copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="not a store"):
        Store(store_copy)


@torch.inference_mode()
def test_rho_is_the_mean_magnitude(reader, passages):
    encoder = PassageEncoder(reader, passage_length=32)
    magnitudes = []
    for passage in passages[:8]:
        _, states, _ = encoder.states([passage])
        magnitudes.append(states[0].abs())
    expected = torch.cat(magnitudes).mean(0)
    torch.testing.assert_close(calibrate_residual_scale(reader, passages[:8], 32), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least one passage"):
        calibrate_residual_scale(reader, [])


def test_encoder_arguments_are_named(reader, passages):
    for match, arguments in [
        ("kind must be one of", {"kind": "int4"}),
        ("keep: the share", {"keep": 0.0}),
        ("passage_length must be in 2..65535", {"passage_length": 1}),
        ("passage_length must be in 2..65535", {"passage_length": 70000}),
    ]:
        with pytest.raises(ValueError, match=match):
            PassageEncoder(reader, **arguments)
    with pytest.raises(ValueError, match="shard_passages must be at least 1"):
        PassageEncoder(reader).store_settings("c", 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(PassageEncoder(reader).batches(passages[:2], 0))


def test_fingerprints_follow_the_offline_part_only(make_reader):
    reader, other = make_reader(), make_reader()
    with torch.no_grad():
        other.model.encoder.block[3].layer[0].SelfAttention.q.weight.add_(1)
        other.model.lm_head.weight.add_(1)
    assert reader.fingerprint() == other.fingerprint()
    with torch.no_grad():
        other.model.encoder.block[1].layer[0].SelfAttention.q.weight[0, 0] += 1e-3
    assert reader.fingerprint() != other.fingerprint()
    assert reader.fingerprint() != reader.with_settings(replace(reader.settings, cut_layer=1)).fingerprint()


def test_long_and_short_passages(reader, tmp_path):
    corpus = tmp_path / "passages.jsonl"
    write_jsonl(corpus, [{"id": "long", "text": "word " * 20000}, {"id": "short", "text": "a"}, {"id": 7, "text": "b"}])
    encode_corpus(encoder_of(reader, passage_length=16), corpus, tmp_path / "s", progress=False)
    store = Store(tmp_path / "s")
    assert store.passage_ids() == ["long", "short", "7"]
    ids = store.passage("long").token_ids
    assert len(ids) == 16
    assert ids[-1] == 1
    assert pad_passages([[store.passage("short").token_ids]]).content[0, 0, -1] == 1
    assert [p.id for p in read_passages(corpus)] == ["long", "short", "7"]
