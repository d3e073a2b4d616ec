"""Statistics of the bits of each vocabulary id, and the tables of masked bits that follow from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import btr_kernels
from btr_reader.encoding import PassageEncoder, calibrate_residual_scale, encode_corpus
from btr_reader.reader import load_reader
from btr_reader.store import Store
from btr_reader.token_statistics import (
    PRIOR_TOKENS,
    STATISTICS_FILE,
    TokenStatistics,
    calibrate,
    load_token_statistics,
)

from .helpers import run


@pytest.fixture(scope="module")
def measured(reader, passages):
    return calibrate(reader, passages, 32)


@torch.inference_mode()
def test_statistics_count_the_bits_of_every_id(reader, passages, measured):
    scale, statistics = measured
    torch.testing.assert_close(scale, calibrate_residual_scale(reader, passages, 32))
    encoder = PassageEncoder(reader, passage_length=32)
    expected = TokenStatistics.empty(reader.tokenizer.vocabulary_size, 44)
    for passage in passages:
        (ids,), states, _ = encoder.states([passage])
        for token_id, state in zip(ids, states[0], strict=True):
            expected.tokens[token_id] += 1
            expected.ones[token_id] += (state >= 0).int()
    assert torch.equal(statistics.tokens, expected.tokens)
    # Alone, without padding, the sign of a channel that is all but zero may be the other one.
    assert int((statistics.ones - expected.ones).abs().sum()) <= 5
    with pytest.raises(ValueError, match="at least one passage"):
        calibrate(reader, [])


@pytest.mark.parametrize("stored", [1, 7, 43, 44])
def test_tables_store_the_least_certain_bits(measured, stored):
    _, statistics = measured
    tables = statistics.tables(stored)
    tokens, ones = statistics.tokens.numpy()[:, None], statistics.ones.numpy()
    share = (ones + PRIOR_TOKENS * ones.sum(0) / tokens.sum()) / (tokens + PRIOR_TOKENS)
    mask = np.unpackbits(tables.mask, axis=1, bitorder="little")
    majority = np.unpackbits(tables.majority, axis=1, bitorder="little")
    assert not mask[:, 44:].any() and not majority[:, 44:].any()
    assert (mask.sum(1) == stored).all()
    assert (majority[:, :44] == (share >= 0.5)).all()
    uncertainty = -abs(share - 0.5)
    for row in range(len(mask)):
        inside, outside = uncertainty[row][mask[row, :44] == 1], uncertainty[row][mask[row, :44] == 0]
        assert inside.min() >= outside.max(initial=-1)
    # Ids that never occurred have the table of all tokens together.
    unseen = np.flatnonzero(tokens[:, 0] == 0)
    assert len(unseen) and (mask[unseen] == mask[unseen[0]]).all()


def test_fewer_bits_flip_the_more_are_stored(reader, corpus, measured, tmp_path):
    encode_corpus(PassageEncoder(reader, passage_length=32), corpus, tmp_path / "all", progress=False)
    ids = [Store(tmp_path / "all").passage_ids()]
    expected = btr_kernels.unpack_bits(Store(tmp_path / "all").fetch(ids).content, 44)
    flips = []
    for stored in (44, 30, 15, 1):
        out = tmp_path / str(stored)
        encoder = PassageEncoder(reader, passage_length=32, masked_bits=stored, original_ids=False)
        encode_corpus(encoder, corpus, out, tables=measured[1].tables(stored), progress=False)
        store = Store(out)
        assert store.manifest.complete
        store.verify(0)
        flips.append(int((btr_kernels.unpack_bits(store.fetch(ids).content, 44) != expected).sum()))
    assert flips[0] == 0
    assert flips == sorted(flips)
    # Filled-in bits are right more often than not.
    assert 0 < flips[-1] < 0.5 * 43 / 44 * expected.numel()


def test_statistics_are_kept_with_the_reader(reader, measured, tmp_path):
    reader.save(tmp_path)
    assert load_token_statistics(tmp_path, reader) is None
    measured[1].save(tmp_path, reader.settings)
    found = load_token_statistics(tmp_path, reader)
    assert torch.equal(found.tokens, measured[1].tokens)
    assert torch.equal(found.ones, measured[1].ones)
    with pytest.raises(ValueError, match=r"token_statistics.safetensors: measured at .*run btr calibrate again"):
        load_token_statistics(tmp_path, reader.with_settings(replace(reader.settings, cut_layer=1)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("ones"), "expected the tensors"),
        (lambda t: t.update(ones=t["ones"][:, :-1].clone()), "expected the tensors"),
        (lambda t: t.update(tokens=t["tokens"].float()), "expected the tensors"),
        (lambda t: t["ids"].__setitem__(-1, 10**6), "ids must rise below"),
        (lambda t: t["ids"].__setitem__(0, -1), "ids must rise below"),
        (lambda t: t["ids"].__setitem__(1, 0), "ids must rise below"),
        (lambda t: t["ones"].__setitem__((0, 0), 10**6), "ids must rise below"),
        (lambda t: t["ones"].__setitem__((0, 0), -1), "ids must rise below"),
    ],
)
def test_damaged_statistics_are_named(reader, measured, tmp_path, change, match):
    measured[1].save(tmp_path, reader.settings)
    path = tmp_path / STATISTICS_FILE
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={name: str(value) for name, value in reader.settings.to_dict().items()})
    with pytest.raises(ValueError, match=f"{STATISTICS_FILE}: .*{match}"):
        load_token_statistics(tmp_path, reader)
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match=f"{STATISTICS_FILE}: damaged"):
        load_token_statistics(tmp_path, reader)


def test_the_store_keeps_the_tables_it_was_begun_with(reader_directory, corpus, tmp_path, capsys):
    reader = load_reader(reader_directory)
    replace(reader, residual_scale=None).save(tmp_path / "r")
    encode = ("encode", corpus, "--reader", tmp_path / "r", "--out", tmp_path / "s", "--passage-length", 32)
    encode += ("--masked-bits", 12)
    assert run(*encode) == 0
    # One run of the reader measures both.
    assert (tmp_path / "r" / STATISTICS_FILE).is_file()
    assert load_reader(tmp_path / "r").residual_scale is not None
    tables = (tmp_path / "s" / "tables.safetensors").read_bytes()
    assert run("calibrate", corpus, "--reader", tmp_path / "r", "--max-passages", 3, "--passage-length", 32) == 0
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "new", "text": "a list of words"}\n')
    assert run("encode", more, *encode[2:], "--append") == 0
    assert (tmp_path / "s" / "tables.safetensors").read_bytes() == tables
    capsys.readouterr()
    assert run("store", "verify", tmp_path / "s") == 0
    assert run("store", "info", tmp_path / "s", "--json", tmp_path / "info.json") == 0
    shown = capsys.readouterr().out
    assert "12 of 44 stored" in shown
    assert "total and tables" in shown
    assert len(Store(tmp_path / "s")) == 41
