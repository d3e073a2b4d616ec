"""The extractive reader: against the library's BERT, its forms against each other and against their stores."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import btr_kernels
from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.extractive.answering import answer_spans
from btr_reader.extractive.calibration import calibrated
from btr_reader.extractive.encoder import BertFusionEncoder
from btr_reader.extractive.examples import ReadPassage, SpanBatches, SpanExample
from btr_reader.extractive.forward import ExtractiveModel
from btr_reader.extractive.reader import HEAD_FILE, SETTINGS_FILE, load_extractive_reader
from btr_reader.extractive.spans import best_spans, span_divergence, span_loss
from btr_reader.extractive.stored import spans_from_store
from btr_reader.passages import Passage
from btr_reader.settings import ReaderSettings
from btr_reader.shares import Compression
from btr_reader.sign_code import SignCode
from btr_reader.store import Store

from .retrieval_helpers import edit_json

LENGTH = 24


@pytest.fixture(scope="module")
def make_extractive(encoder_directory):
    """make_extractive(cut_point) -> a tiny reader whose norms and head are not those of a new model."""

    def make(cut_point="layer_output"):
        reader = load_extractive_reader(encoder_directory, ReaderSettings(1, cut_point), query_length=12)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in reader.model.named_parameters():
                if "LayerNorm" in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
                elif "encoder" in name:
                    parameter.mul_(6)
            reader.head.weight.normal_(generator=generator)
        return reader

    return make


@pytest.fixture(scope="module")
def span_examples(passages):
    def example(number):
        read = passages[number : number + 2 + number % 2]
        return SpanExample(f"q{number}", f"what is {read[0].title}", [" ".join(read[0].text.split()[2:4])], read)

    return [example(number) for number in range(9)]


@pytest.fixture
def batches(make_extractive, span_examples):
    return SpanBatches(
        span_examples, make_extractive().tokenizer, batch_size=4, passages=3, passage_length=LENGTH, query_length=12
    )


def test_undecomposed_reader_is_the_library_s_bert(make_extractive, batches):
    reader = make_extractive()
    batch = batches.batch(batches.examples[:3])
    output = ExtractiveModel(reader, "atlas")(batch)
    reader.model.eval()
    for number, place in ((0, 0), (1, 2), (2, 1)):
        question = batch.query.ids[number][batch.query.sizes[number] > 0]
        passage = batch.passages.content[number, place][batch.passages.sizes[number, place] > 0]
        count, length = len(question), len(passage)
        final = reader.model(
            input_ids=torch.cat([question, passage])[None],
            token_type_ids=torch.tensor([[0] * count + [1] * length]),
            position_ids=torch.tensor([[*range(count), *range(12, 12 + length)]]),
        ).last_hidden_state[0, count:]
        allowed = batch.allowed[number, place, :length]
        expected = (final @ reader.head.weight.T + reader.head.bias)[allowed]
        found = torch.stack([output.start[number, place, :length], output.end[number, place, :length]], 1)[allowed]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cut_point", ["layer_output", "attention_output"])
def test_states_at_the_cut_are_those_of_the_passage_alone(make_extractive, batches, cut_point):
    reader = make_extractive(cut_point)
    batch = batches.batch(batches.examples[:2])
    ids, sizes = batch.passages.content.flatten(0, 1), batch.passages.sizes.flatten(0, 1)
    ids, sizes = ids[sizes.any(1)], sizes[sizes.any(1)]
    together = reader.passage_states(ids, sizes)
    length = int(sizes[1].sum())
    torch.testing.assert_close(together[1, :length], reader.passage_states(ids[1:2, :length], sizes[1:2, :length])[0])
    torch.testing.assert_close(together[1, :length].mean(-1), torch.zeros(length), atol=1e-5, rtol=0)
    if cut_point == "layer_output":
        first = reader.model.eval()(
            input_ids=ids[1:2, :length], token_type_ids=torch.ones(1, length, dtype=torch.long),
            position_ids=torch.arange(12, 12 + length)[None], output_hidden_states=True,
        ).hidden_states[1][0]  # fmt: skip
        norm = BertFusionEncoder(reader.model, 12).cut_norm(reader.settings)
        torch.testing.assert_close(together[1, :length] * norm.weight + norm.bias, first, atol=1e-4, rtol=1e-4)


CODES = {
    "plain": {},
    "masked": {"masked_bits": 12},
    "centroids": {"centroids": True},
    "centroids, masked": {"centroids": True, "masked_bits": 12},
    "uncalibrated": {"calibrate": False},
}


@pytest.mark.parametrize(
    "code, keep, same_id_first, cut_point",
    [(name, 1.0, False, "layer_output") for name in CODES]
    + [("plain", 0.6, False, "attention_output"), ("centroids, masked", 0.6, False, "layer_output")]
    + [("masked", 0.6, same_id_first, "layer_output") for same_id_first in (False, True)]
    + [("centroids", 0.8, True, "attention_output")],
)
def test_from_a_store_it_reads_what_it_was_trained_on(
    make_extractive, batches, corpus, passages, tmp_path, monkeypatch, code, keep, same_id_first, cut_point
):
    reader = calibrated(make_extractive(cut_point), passages[:10], LENGTH, **CODES[code])
    compression = Compression(offline=keep, joint=0.8)
    model = ExtractiveModel(reader, "btr", compression, same_id_first=same_id_first).eval()
    encode_corpus(
        PassageEncoder(reader, "binary", keep, LENGTH, same_id_first=same_id_first),
        corpus,
        tmp_path / "s",
        progress=False,
    )
    store = Store(tmp_path / "s")
    assert store.settings.masked_bits == (12 if "masked" in code else 0)
    chunk = batches.examples[:4]
    batch = batches.batch(chunk)
    seen, restore = [], reader.code.restore
    monkeypatch.setattr(reader.code, "restore", lambda *read: seen.append(read[:2]) or restore(*read))
    trained = model(batch)
    stored = store.fetch([[passage.id for passage in example.passages[:3]] for example in chunk])
    present = stored.sizes > 0
    signs, ids = seen[-1]
    kept = torch.full_like(stored.content, 255) if reader.code.mask is None else reader.code.mask[ids]
    assert torch.equal((btr_kernels.pack_bits(signs) & kept)[present], (stored.content & kept)[present])
    read = spans_from_store(model, store, chunk, batch)
    if same_id_first:
        assert not torch.allclose(ExtractiveModel(reader, "btr", compression)(batch).start, trained.start, atol=1e-3)
    torch.testing.assert_close(read.start, trained.start, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(read.end, trained.end, atol=1e-4, rtol=1e-4)
    # It does read the store: other bits give other answers.
    other = ExtractiveModel(replace(reader, code=calibrated(reader, passages[:10], LENGTH).code), "btr")
    if code != "plain":
        assert not torch.allclose(other(batch).start, trained.start, atol=1e-3)
    with torch.no_grad():
        reader.model.encoder.layer[0].output.dense.bias.add_(1)
    with pytest.raises(ValueError, match="encoded by another reader"):
        next(answer_spans(model, batches, 5, store))


def test_float_states_from_a_store(make_extractive, batches, corpus, tmp_path):
    reader = make_extractive()
    model = ExtractiveModel(reader, "deformer")
    encode_corpus(PassageEncoder(reader, "float32", 1.0, LENGTH), corpus, tmp_path / "s", progress=False)
    assert PassageEncoder(reader, "float32", 0.6, LENGTH, same_id_first=True).same_id_first
    chunk = batches.examples[:4]
    batch = batches.batch(chunk)
    torch.testing.assert_close(
        spans_from_store(model, Store(tmp_path / "s"), chunk, batch).start, model(batch).start, atol=1e-4, rtol=1e-4
    )
    # A reader of bits keeps the same floats: nothing is taken off them.
    coded = calibrated(reader, [p for e in batches.examples for p in e.passages], LENGTH, centroids=True)
    encode_corpus(PassageEncoder(coded, "float32", 1.0, LENGTH), corpus, tmp_path / "c", progress=False)
    both = ExtractiveModel(coded, "deformer")
    next(answer_spans(both, batches, 5, Store(tmp_path / "c")))
    assert torch.equal(
        spans_from_store(both, Store(tmp_path / "c"), chunk, batch).start,
        spans_from_store(model, Store(tmp_path / "s"), chunk, batch).start,
    )
    longer = replace(batch, passages=replace(batch.passages, content=batch.passages.content + 1))
    with pytest.raises(ValueError, match="holds other texts"):
        spans_from_store(model, Store(tmp_path / "s"), chunk, longer)


@torch.no_grad()
def test_codes_restore_better_the_more_they_know(make_extractive, batches, passages):
    """Calibration, then centroids, lower the error of restored states; masking the fewest-varying bits raises it."""
    reader = make_extractive()
    batch = batches.batch(batches.examples)
    present = batch.passages.sizes > 0

    def error(**options):
        output = ExtractiveModel(calibrated(reader, passages, LENGTH, **options), "btr")(batch)
        return float((output.restored - output.states)[present].pow(2).mean())

    assert error(centroids=True) < error(centroids=True, masked_bits=12) < error() < error(calibrate=False)
    assert error() < error(masked_bits=12)


@torch.no_grad()
def test_a_token_s_id_and_place_come_back_without_a_bit(make_extractive, passages):
    """By hand, two channels: weight * (centroid + place) + bias, and scale * (±1) more where a bit is stored."""
    code = SignCode(
        scale=torch.tensor([0.5, 0.25]), bias=torch.tensor([10.0, 20.0]), weight=torch.tensor([2.0, -1.0]),
        centroids=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), places=torch.tensor([[0.0, 0.0], [0.5, 1.0]]),
        mask=torch.tensor([[0b11], [0b01]], dtype=torch.uint8), majority=torch.zeros(2, 1, dtype=torch.uint8),
    )  # fmt: skip
    ids, positions = torch.tensor([0, 1]), torch.tensor([1, 0])
    deviation = code.deviation(torch.tensor([[1.0, 3.5], [3.0, 9.0]]), ids, positions)
    assert deviation.tolist() == [[-0.5, 0.5], [0.0, 5.0]]
    restored = code.restore_bits(btr_kernels.pack_bits(deviation), ids, positions)
    assert restored.tolist() == [[10 + 2 * 1.5 - 0.5, 20 - 3 + 0.25], [10 + 2 * 3 + 0.5, 20 - 4]]
    # Measured tables do the same: where deviations are none, the sum of both is the state.
    reader = calibrated(make_extractive(), passages, LENGTH, centroids=True)
    ids, sizes = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int32)
    states = replace(reader, code=None).passage_states(ids, sizes)
    foretold = reader.code.centroids[ids] + reader.code.places[:3]
    torch.testing.assert_close(reader.passage_states(ids, sizes), states - foretold)
    assert (states - foretold).square().mean() < (states - reader.code.centroids[ids]).square().mean()


def test_questions_may_number_their_passages_each_for_itself(make_extractive):
    texts = ("the amber basil cedar", "daisy eagle")
    examples = [
        SpanExample(f"q{i}", "what", [text.split()[1]], [Passage("0", "", text)]) for i, text in enumerate(texts)
    ]
    reader = make_extractive()
    batches = SpanBatches(examples, reader.tokenizer, batch_size=2, passages=1, passage_length=LENGTH, query_length=12)
    answers = {e.id: text for e, text in answer_spans(ExtractiveModel(reader, "atlas"), batches, 1)}
    assert all(answer in text for answer, text in zip((answers["q0"], answers["q1"]), texts, strict=True))


@torch.no_grad()
def test_a_place_where_passages_are_cut_is_like_those_before_it(make_extractive, passages):
    """Most passages have their end token there, which says nothing of the place."""
    reader = make_extractive()
    places = calibrated(reader, passages, 12, centroids=True).code.places
    assert torch.equal(places[11:], places[10].expand_as(places[11:]))
    step = (places[1:11] - places[:10]).norm(dim=1)
    assert (places[11] - places[10]).norm() <= step.max()


@torch.no_grad()
def test_merging_equal_tokens_changes_nothing(make_extractive, batches):
    """Proportional attention: two equal tokens weigh as one that stands for both."""
    reader = make_extractive()
    encoder = BertFusionEncoder(reader.model, 12)
    query = batches.batch(batches.examples[:1]).query
    once = torch.randn(1, 1, 4, reader.channels)
    twice = once.repeat_interleave(2, dim=2)
    sizes = torch.ones(1, 1, 8, dtype=torch.int32)
    states = encoder.query_states(query, 1)
    plain = encoder.join(states, query.sizes, twice, sizes, 1, 1, Compression())
    for similarity in ("hamming", "keys"):
        merged = encoder.join(states, query.sizes, twice, sizes, 1, 1, Compression(joint=0.5, similarity=similarity))
        torch.testing.assert_close(merged.states, plain.states, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_merged_tokens_are_told_apart(make_extractive, batches):
    reader = make_extractive()
    batch = batches.batch(batches.examples[:2])
    output = ExtractiveModel(reader, "deformer", Compression(joint=0.5))(batch)
    slots = output.traces[-1].slots
    row = slots[0][slots[0] >= 0]
    assert row.max() + 1 == math.ceil(len(row) / 2)
    allowed = output.start[0, 0][batch.allowed[0, 0]]
    assert len(allowed.unique()) == len(allowed)


def test_span_loss_by_hand():
    # First tokens 1/2, 1/4, 1/4; last tokens 1/4, 1/4, 1/2.
    start, end = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    one = span_loss(start, end, torch.tensor([[[0, 2], [-1, -1]]]))
    assert one.item() == pytest.approx(math.log(4))
    both = span_loss(start, end, torch.tensor([[[0, 2], [1, 1]]]))
    assert both.item() == pytest.approx(-math.log(1 / 4 + 1 / 16))


def test_span_divergence_by_hand():
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert span_divergence((student, teacher), (teacher, teacher)).item() == pytest.approx(expected)


def test_best_spans_by_hand():
    start = torch.tensor([[[1.0, 0.0, 5.0], [0.0, 4.0, 0.0]]])
    end = torch.tensor([[[9.0, 2.0, -3.0], [7.0, 0.0, 6.0]]])
    # 1 + 9 in the first passage, 4 + 6 in the second: of equals the earliest.
    assert best_spans(start, end, 3).tolist() == [[0, 0, 0]]
    assert best_spans(start - torch.tensor([[[1.0], [0.0]]]), end, 3).tolist() == [[1, 1, 2]]
    assert best_spans(start[:, 1:], end[:, 1:], 1).tolist() == [[0, 0, 0]]


def test_spans_are_whole_words_of_the_text(make_extractive):
    tokenizer = make_extractive().tokenizer
    passage = Passage("p", "the list", "a List is the lists of list values")
    read = ReadPassage.of(passage, tokenizer, 30)
    words = passage.reader_text.split()
    assert len(read.ids) == len(words) + 1 and read.first == 4
    assert read.spans(passage, ["list", "absent"]) == [(5, 5), (10, 10)]
    assert read.spans(passage, ["is the"]) == [(6, 7)]
    assert read.text(passage, 5, 7) == "List is the"
    # Cut before the last words, which then cannot be found.
    assert ReadPassage.of(passage, tokenizer, 10).spans(passage, ["list"]) == [(5, 5)]


def test_batches_are_in_an_order_that_can_be_taken_up(batches, make_extractive, span_examples):
    order = [batches[number].ids for number in range(2 * len(batches))]
    epochs = [sorted(sum(order[: len(batches)], ())), sorted(sum(order[len(batches) :], ()))]
    assert epochs[0] == epochs[1] == sorted(e.id for e in batches.trainable)
    assert order[: len(batches)] != order[len(batches) :]
    again = SpanBatches(
        span_examples, make_extractive().tokenizer, batch_size=4, passages=3, passage_length=LENGTH, query_length=12
    )
    assert [again[number].ids for number in (3, 0)] == [order[3], order[0]]
    unanswerable = replace(span_examples[0], answers=["absent"])
    assert not SpanBatches(
        [unanswerable], make_extractive().tokenizer, batch_size=1, passages=3, passage_length=LENGTH, query_length=12
    ).trainable


def test_saved_and_loaded(make_extractive, passages, tmp_path):
    for options in CODES.values():
        reader = calibrated(make_extractive(), passages[:5], LENGTH, **options)
        reader.save(tmp_path / "r")
        again = load_extractive_reader(tmp_path / "r")
        assert (again.settings, again.query_length) == (reader.settings, reader.query_length)
        assert again.fingerprint() == reader.fingerprint()
        assert again.code.calibrated == reader.code.calibrated
        for name, tensor in reader.code.state_dict().items():
            assert torch.equal(again.code.state_dict()[name], tensor), name
        assert torch.equal(again.head.weight, reader.head.weight)
        assert again.tokenizer.fingerprint() == reader.tokenizer.fingerprint()
    other = load_extractive_reader(tmp_path / "r", ReaderSettings(1, "attention_output"))
    assert other.settings.cut_point == "attention_output" and other.code is None


def test_damaged_directories(make_extractive, passages, tmp_path):
    reader = calibrated(make_extractive(), passages[:5], LENGTH, centroids=True)
    reader.save(tmp_path)
    tensors = load_file(tmp_path / HEAD_FILE)
    save_file({**tensors, "code.scale": tensors["code.scale"][:-1].clone()}, tmp_path / HEAD_FILE)
    with pytest.raises(ValueError, match=r"code.scale torch.float32 \(19,\) is unexpected"):
        load_extractive_reader(tmp_path)
    save_file({name: t for name, t in tensors.items() if name != "code.weight"}, tmp_path / HEAD_FILE)
    with pytest.raises(ValueError, match="code.weight is missing"):
        load_extractive_reader(tmp_path)
    save_file({**tensors, "code.scale": tensors["code.scale"] * math.nan}, tmp_path / HEAD_FILE)
    with pytest.raises(ValueError, match="code.scale must be finite"):
        load_extractive_reader(tmp_path)
    edit_json(tmp_path / SETTINGS_FILE, lambda record: record.update(query_length="long"))
    with pytest.raises(ValueError, match="query_length must be an integer"):
        load_extractive_reader(tmp_path)
    edit_json(tmp_path / "config.json", lambda record: record.update(model_type="t5"))
    with pytest.raises(ValueError, match="expected a model of type 'bert'"):
        load_extractive_reader(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a model's directory"):
        load_extractive_reader(tmp_path / "nothing")


def test_what_a_form_refuses(make_extractive, passages):
    reader = make_extractive()
    with pytest.raises(ValueError, match="no code for bits yet"):
        ExtractiveModel(reader, "btr")
    with pytest.raises(ValueError, match="decoder: an extractive reader has none"):
        ExtractiveModel(reader, "deformer", Compression(decoder=0.5))
    with pytest.raises(ValueError, match="joint: the undecomposed reader"):
        ExtractiveModel(reader, "atlas", Compression(joint=0.5))
    with pytest.raises(ValueError, match=r"masked_bits must be in 0\.\.20, got 21"):
        calibrated(reader, passages, LENGTH, masked_bits=21)
    with pytest.raises(ValueError, match=r"passage_length must be at most \d+ for this model, got 5000"):
        PassageEncoder(reader, "float32", 1.0, 5000)
    with pytest.raises(ValueError, match="centroids"):
        calibrated(reader, passages, LENGTH, calibrate=False, centroids=True)
    with pytest.raises(ValueError, match=r"cut_layer must be in 1\.\.1"):
        replace(reader, settings=ReaderSettings(2, "layer_output"))
