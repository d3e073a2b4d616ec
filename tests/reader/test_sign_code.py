"""Codes, by which bits of what vocabulary id and place do not foretell are restored: measured, kept, damaged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import btr_kernels
from btr_reader.answering import check_store
from btr_reader.batches import PassageBatch, pad_passages
from btr_reader.centroids import centroid_code
from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.engine import ReaderEngine
from btr_reader.model import load_tensors
from btr_reader.passages import Passage, read_passages
from btr_reader.reader import RESTORE_FILE, load_reader
from btr_reader.settings import ReaderSettings
from btr_reader.sign_code import SignCode
from btr_reader.states import after_the_cut
from btr_reader.store import Store
from btr_reader.training.loop import with_code

from .helpers import CENTROIDS

LENGTH = CENTROIDS.passage_length


@torch.no_grad()
def test_more_is_known_of_a_state_than_from_its_signs(tiny_reader, task):
    """The error of restored states, over all tokens, falls with centroids, and rises again with bits left out."""
    passages = [passage for example in task for passage in example.passages]
    reader = tiny_reader()

    def error(code, signs_only=False) -> float:
        batch = pad_passages([[reader.tokenizer.encode_passage(p.reader_text, LENGTH) for p in passages]])
        ids, sizes = batch.content[0], batch.sizes[0]
        states = reader.passage_states(ids, sizes)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        if signs_only:
            magnitude = states[sizes > 0].abs().mean(0)
            restored = states.sign() * magnitude
        else:
            bits = btr_kernels.pack_bits(replace(reader, code=code).passage_states(ids, sizes))
            restored = code.restore_bits(bits, ids, positions)
        return float((restored - states)[sizes > 0].square().mean())

    def code(masked_bits: int):
        ones = torch.ones(reader.channels)
        return centroid_code(reader, passages, LENGTH, ones, 0 * ones, ones, masked_bits)

    assert error(code(0)) < error(code(9)) < error(None, signs_only=True)


class Spread:
    """A reader whose states are noise of known deviation around what id and place say: 100 times as much."""

    code, channels, device = None, 8, torch.device("cpu")
    deviation = torch.tensor([1.0, 2.0, 0.5, 1.5, 4.0, 0.25, 1.0, 3.0])

    def __init__(self, tokenizer):
        self.tokenizer, self.settings = tokenizer, ReaderSettings(1, "layer_output")
        self._chance = torch.Generator().manual_seed(0)
        self.said = 100 * torch.randn(tokenizer.vocabulary_size, 8, generator=self._chance)

    def check_passage_length(self, length):
        pass

    def passage_states(self, ids, sizes):
        places = 100 * torch.sin(torch.arange(ids.shape[1]))[:, None]
        return self.said[ids] + places + self.deviation * torch.randn(*ids.shape, 8, generator=self._chance)


def test_scales_and_masks_are_those_of_what_is_left(facts_tokenizer):
    """Normal deviations have a mean magnitude of sqrt(2 / pi) = 0.798 of their deviation; masks go by importance."""
    passages = [Passage(str(i), "", "the color of the old mill is red") for i in range(600)]
    ones, importance = torch.ones(8), torch.tensor([1.0, 1, 20, 1, 1, 1, 1, 1])
    code = centroid_code(Spread(facts_tokenizer), passages, LENGTH, 2 * ones, 0 * ones, importance, 3)
    seen = facts_tokenizer.encode_passage(passages[0].reader_text, LENGTH)
    # Channel 2 counts twenty times: it is stored before those that differ as much.
    stored = btr_kernels.unpack_bits(code.mask[seen], 8) > 0
    assert stored.nonzero()[:, 1].reshape(-1, 3).tolist() == [[2, 4, 7]] * len(seen) and not code.majority.any()
    expected = 2 * 0.79788 * Spread.deviation
    torch.testing.assert_close(code.scale[[2, 4, 7]], expected[[2, 4, 7]], rtol=0.06, atol=0.0)


def test_masks_go_by_what_the_next_layer_makes_of_a_channel(tiny_reader, task):
    reader, chosen = tiny_reader(), torch.tensor([1, 3, 4, 8, 9, 13, 17, 20, 23])
    norm, _ = after_the_cut(reader.model, reader.settings)
    with torch.no_grad():
        norm.weight.zero_()[chosen] = 1.0
    code = with_code(reader, task, replace(CENTROIDS, masked_bits=9)).code
    stored = btr_kernels.unpack_bits(code.mask, 24) > 0
    assert stored[:, chosen].all() and int(stored.sum()) == 9 * len(stored)


def test_statistics_are_of_as_many_passages_as_asked_for(tiny_reader, task):
    few, more = (with_code(tiny_reader(), task, replace(CENTROIDS, statistics_passages=n)).code for n in (1, 2))
    assert not torch.equal(few.centroids, more.centroids)
    everything = with_code(tiny_reader(), task, replace(CENTROIDS, statistics_passages=1000)).code
    assert torch.equal(everything.centroids, with_code(tiny_reader(), task, CENTROIDS).code.centroids)


def test_stores_belong_to_the_tables_they_were_made_with(coded, tmp_path):
    reader = coded(9)
    before = reader.fingerprint()
    with torch.no_grad():
        reader.code.scale.mul_(2)  # what is trained on after encoding leaves stores as they are
    assert reader.fingerprint() == before
    for name in ("centroids", "places", "mask"):
        state = {key: tensor.clone() for key, tensor in reader.code.state_dict().items()}
        state[name][0] += 1
        assert replace(reader, code=SignCode(**state)).fingerprint() != before, name
    encode_corpus(
        PassageEncoder(reader, passage_length=LENGTH), tmp_path / "passages.jsonl", tmp_path / "s", progress=False
    )
    path = tmp_path / "s" / "manifest.json"
    record = json.loads(path.read_text())
    record["settings"]["passage_length"] = LENGTH + 1
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"passage_length must be at most {LENGTH}"):
        check_store(Store(tmp_path / "s"), reader)


def test_a_code_moves_with_its_reader(coded):
    reader = coded(9).to("meta")
    assert {tensor.device.type for tensor in (*reader.code.parameters(), *reader.code.buffers())} == {"meta"}


def test_codebooks_share_bits_of_what_is_not_foretold(coded, tmp_path):
    """Vectors of a codebook are whole: a reader that stores all bits reads them by the ids that are kept."""
    reader = coded(0)
    encoder = PassageEncoder(reader, passage_length=LENGTH, codebook_bytes=17, original_ids=False)
    encode_corpus(encoder, tmp_path / "passages.jsonl", tmp_path / "s", progress=False)
    store = Store(tmp_path / "s")
    names = [store.passage_ids()[:3]]
    fetched = store.fetch(names, with_ids=True)
    tokens = [
        reader.tokenizer.encode_passage(p.reader_text, LENGTH) for p in read_passages(tmp_path / "passages.jsonl")
    ]
    assert [row[row > 0].tolist() for row in fetched.ids[0]] == tokens[:3]
    assert ReaderEngine(reader, "btr")._states(fetched).values.isfinite().all()
    encoder = PassageEncoder(replace(reader, code=None), passage_length=LENGTH, original_ids=False)
    encode_corpus(encoder, tmp_path / "passages.jsonl", tmp_path / "plain", progress=False)
    with pytest.raises(ValueError, match="encoded with --original-ids drop: its bits cannot be read by their ids"):
        Store(tmp_path / "plain").fetch(names, with_ids=True)


def test_damaged_codes_are_named(coded, tmp_path):
    coded(9).save(tmp_path)
    path, tensors = tmp_path / RESTORE_FILE, load_tensors(tmp_path / RESTORE_FILE)
    metadata = {"cut_layer": "2", "cut_point": "attention_output"}
    whole = {name: tensor.clone() for name, tensor in tensors.items()}
    centroids = whole["code.centroids"]
    infinite = centroids.clone()
    infinite[0, 0] = torch.inf
    uneven = whole["code.mask"].clone()
    uneven[5] = 255
    for changes, message in (
        ({"code.centroids": centroids[:-1].clone()}, "tensor code.centroids torch.float32 .* is unexpected"),
        ({"code.centroids": infinite}, "tensor code.centroids must be finite"),
        ({"code.places": torch.zeros(0, 24)}, "tensor code.places .* is unexpected"),
        ({"code.mask": whole["code.mask"].int()}, "tensor code.mask torch.int32 .* is unexpected"),
        ({"code.other": torch.ones(24)}, "tensor code.other .* is unexpected"),
        ({"other": torch.ones(24)}, "expected the tensor residual_scale, or those of a code"),
        ({"code.weight": None}, "tensor code.weight is missing"),
        ({"code.scale": None}, "tensor code.scale is missing"),
        (dict.fromkeys(("code.centroids", "code.places", "code.weight")), "tensor code.centroids is missing"),
        ({"code.mask": torch.zeros_like(whole["code.mask"])}, "code.mask must have as many bits in every row, 1 to 24"),
        ({"code.mask": uneven}, "code.mask must have as many bits in every row"),
        ({"code.centroids": whole["code.centroids"].half()}, "tensor code.centroids torch.float16 .* is unexpected"),
        ({"code.majority": whole["code.mask"].clone()}, "code.majority must be 0"),
    ):
        changed = {name: tensor for name, tensor in (whole | changes).items() if tensor is not None}
        save_file(changed, path, metadata=metadata)
        with pytest.raises(ValueError, match=message):
            load_reader(tmp_path)
    save_file(whole, path, metadata=metadata | {"cut_layer": "1"})
    with pytest.raises(ValueError, match="measured at"):
        load_reader(tmp_path)


def test_a_bfloat16_reader_restores_in_float32(coded, task, tmp_path):
    reader = coded(0, "layer_output")
    encode_corpus(
        PassageEncoder(reader, passage_length=LENGTH), tmp_path / "passages.jsonl", tmp_path / "s", progress=False
    )
    names = [[passage.id for passage in read_passages(tmp_path / "passages.jsonl")][:3]]
    stored = Store(tmp_path / "s").fetch(names, with_ids=True)
    exact = ReaderEngine(reader, "btr")._states(stored).values.clone()
    rounded = ReaderEngine(reader.to("cpu", torch.bfloat16), "btr")._states(stored).values
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, exact.bfloat16())


def test_ids_come_with_the_tokens_they_are_of(reader, store_directory):
    store = Store(store_directory)
    names = [store.passage_ids()[:2], store.passage_ids()[2:3]]
    fetched, tokens = store.fetch(names, with_ids=True), store.fetch_tokens(names).content
    assert fetched.ids.dtype == torch.int64 and store.fetch(names).ids is None
    expected = tokens.gather(2, fetched.positions.long())
    present = fetched.sizes > 0
    assert torch.equal(fetched.ids[present], expected[present]) and not fetched.ids[~present].any()
    with pytest.raises(ValueError, match=r"ids must be \(1, 1, 3\), got \(1, 3\)"):
        PassageBatch(torch.zeros(1, 1, 3), torch.ones(1, 1, 3, dtype=torch.int32), ids=torch.zeros(1, 3))
