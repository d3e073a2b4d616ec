"""Files of a store that are damaged or forged: named by whoever meets them, and never read beyond."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from btr_reader.digests import file_digest
from btr_reader.store import EncodedPassage, Store, StoreWriter

from .random_stores import PLAIN, random_passages, random_tables, write


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


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put("rows", slice(None), 50), "damaged file: it names row 50 of shard"),
        (put("shards", slice(None), 50), "damaged file: it names row . of shard 50"),
        (put("hashes", slice(None), 0), "damaged index: passage '.*' is not found"),
        (put("rows", slice(None), 0), "damaged index: passage '.*' is not found"),
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
