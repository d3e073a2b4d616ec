"""The T5 reader on bits of what vocabulary id and place do not foretell: training, files, stores, reading."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import btr_kernels
from btr_reader.answering import Answerer, check_store
from btr_reader.batches import PassageBatch, pad_passages, pad_queries
from btr_reader.centroids import centroid_code
from btr_reader.cli import main
from btr_reader.encoder import FusionEncoder
from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.engine import ReaderEngine
from btr_reader.jsonl import write_jsonl
from btr_reader.model import load_tensors
from btr_reader.passages import read_passages
from btr_reader.reader import RESTORE_FILE, load_reader
from btr_reader.shares import Compression
from btr_reader.storage_comparison import compare_storage
from btr_reader.store import Store
from btr_reader.tasks import read_questions
from btr_reader.training.examples import read_examples
from btr_reader.training.facts import fact_corpus, fact_questions
from btr_reader.training.forward import Batch, target_logits
from btr_reader.training.loop import Trainer, with_code
from btr_reader.training.run import BEST
from btr_reader.training.settings import Objectives, TrainingSettings

from .helpers import killed_at

LENGTH = 20
SETTINGS = TrainingSettings(
    steps=4,
    batch_size=2,
    passages=3,
    passage_length=LENGTH,
    target_length=5,
    learning_rate=1e-2,
    evaluate_every=2,
    checkpoint_every=3,
    centroids=True,
    objectives=Objectives(distillation=0.0, divergence=0.0),
)


@pytest.fixture
def task(tmp_path, facts_tokenizer):
    questions = list(fact_questions("nq", 6, 3))
    write_jsonl(tmp_path / "facts.jsonl", questions)
    write_jsonl(tmp_path / "passages.jsonl", fact_corpus(questions))
    return read_examples(tmp_path / "facts.jsonl", "nq", facts_tokenizer)


@pytest.fixture
def coded(tiny_reader, task):
    """coded(masked_bits, cut_point) -> a tiny reader with a code."""

    def make(masked_bits: int = 0, cut_point: str = "attention_output"):
        reader = tiny_reader()
        reader = reader.with_settings(replace(reader.settings, cut_point=cut_point))
        return with_code(reader, task, replace(SETTINGS, masked_bits=masked_bits))

    return make


@pytest.mark.parametrize(
    ("masked_bits", "offline", "same_id_first", "cut_point"),
    [
        (0, 1.0, False, "attention_output"),
        (9, 1.0, False, "layer_output"),
        (0, 0.6, True, "layer_output"),
        (9, 0.5, False, "attention_output"),
    ],
)
def test_what_training_sees_is_what_the_store_restores(
    coded, task, tmp_path, masked_bits, offline, same_id_first, cut_point
):
    options = {"masked_bits": masked_bits, "same_id_first": same_id_first}
    settings = replace(SETTINGS, **options, compression=Compression(offline=offline))
    reader = coded(masked_bits, cut_point)
    before = {name: tensor.clone() for name, tensor in reader.code.state_dict().items()}
    Trainer(reader, "btr", settings, tmp_path / "out", progress=False).train(task, task[:2])
    saved = load_reader(tmp_path / "out" / BEST)
    for name, tensor in saved.code.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in ("centroids", "places", "mask", "majority")), name
    student = Trainer(saved, "btr", settings, tmp_path / "again", progress=False).student
    encoder = PassageEncoder(saved, keep=offline, passage_length=LENGTH, same_id_first=same_id_first)
    encode_corpus(encoder, tmp_path / "passages.jsonl", tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    check_store(store, load_reader(tmp_path / "out" / BEST))
    assert store.settings.masked_bits == masked_bits
    names = [[passage.id for passage in example.passages] for example in task[:2]]
    stored = store.fetch(names, with_ids=True)
    tokenizer = saved.tokenizer
    queries = pad_queries([tokenizer.encode(example.query) for example in task[:2]])
    ids = pad_passages(
        [[tokenizer.encode_passage(p.reader_text, LENGTH) for p in example.passages] for example in task[:2]]
    )
    engine = ReaderEngine(saved, "btr")
    with torch.no_grad():
        seen, merged, _, _ = student._binary(student._offline(FusionEncoder(student.model), ids), ids, 1.0)
        read = engine._states(stored)
    present, width = stored.sizes > 0, stored.sizes.shape[-1]  # the store is padded to what is there
    assert torch.equal(merged.sizes[:, :, :width], stored.sizes) and not merged.sizes[:, :, width:].any()
    torch.testing.assert_close(seen.values[:, :, :width][present], read.values[present])
    targets = torch.tensor([[tokenizer.sentinel, 5, 1], [tokenizer.sentinel, 6, 1]])
    with torch.no_grad():
        expected = target_logits(saved.model, engine.encode(queries, stored), targets)
        torch.testing.assert_close(student(Batch(queries, ids, targets)).logits, expected, rtol=1e-3, atol=1e-4)
    # Without the ids nothing can be restored, and it is said so.
    with pytest.raises(ValueError, match="fetch them with_ids=True"):
        engine.encode(queries, store.fetch(names))


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


def test_a_killed_run_goes_on_with_the_code_it_had(coded, task, tmp_path):
    settings = replace(SETTINGS, masked_bits=9, steps=5)

    def trainer(name):
        return Trainer(coded(9), "btr", settings, tmp_path / name, progress=False)

    whole = trainer("whole")
    best = whole.train(task, task[:2])
    killed_at(3, trainer("killed"), task, task[:2])
    going_on = trainer("killed")
    with torch.no_grad():
        for tensor in (*going_on.student.parameters(), *going_on.student.buffers()):
            tensor.fill_(9)  # all of them come from the checkpoint
    assert going_on.train(task, task[:2]) == best
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, going_on.student.state_dict()[name]), name


def test_training_goes_on_from_a_code_that_fits(coded, task):
    reader = coded(9)
    with torch.no_grad():
        reader.code.scale.mul_(2)
    assert with_code(reader, task, replace(SETTINGS, masked_bits=9)) is reader
    for other in ({"masked_bits": 8}, {"masked_bits": 9, "passage_length": LENGTH + 1}):
        again = with_code(reader, task, replace(SETTINGS, **other))
        assert again.code.stored_bits == other["masked_bits"] and not torch.equal(again.code.scale, reader.code.scale)


def test_codes_and_settings_that_do_not_fit_are_refused(coded, tiny_reader, task, tmp_path):
    reader = coded(9)
    plain = replace(tiny_reader(), residual_scale=torch.ones(24))
    for start, changes, message in (
        (plain, {}, "centroids is True, but the reader's code says otherwise"),
        (reader, {"centroids": False, "masked_bits": 9}, "centroids is False"),
        (reader, {"masked_bits": 8}, "masked_bits must be 9 as in the reader's code, got 8"),
        (reader, {"masked_bits": 9, "passage_length": LENGTH + 1}, f"passage_length must be at most {LENGTH}"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(start, "btr", replace(SETTINGS, **changes), tmp_path)
    with pytest.raises(ValueError, match="the deformer form is trained on all tokens and no bits"):
        Trainer(reader, "deformer", SETTINGS, tmp_path)
    with pytest.raises(ValueError, match="centroids: a state that is restored through them is a calibrated one"):
        replace(SETTINGS, calibrate=False)
    with pytest.raises(ValueError, match="residual_scale must be None for a reader with a code"):
        replace(reader, residual_scale=torch.ones(24))
    with pytest.raises(ValueError, match="masked_bits: the reader's code stores 9 of 24 bits, got 8"):
        PassageEncoder(reader, masked_bits=8, passage_length=LENGTH)
    with pytest.raises(ValueError, match=f"passage_length must be at most {LENGTH}"):
        PassageEncoder(reader, passage_length=LENGTH + 1)
    with pytest.raises(ValueError, match="original_ids: the reader's code restores bits by the tokens' ids"):
        PassageEncoder(coded(0), passage_length=LENGTH, original_ids=False)
    with pytest.raises(ValueError, match="reader: was trained with centroids"):
        compare_storage(reader, [passage for example in task for passage in example.passages])
    assert reader.with_settings(replace(reader.settings, cut_point="layer_output")).code is None


def test_damaged_codes_are_named(coded, tmp_path):
    coded(9).save(tmp_path)
    path, tensors = tmp_path / RESTORE_FILE, load_tensors(tmp_path / RESTORE_FILE)
    metadata = {"cut_layer": "2", "cut_point": "attention_output"}
    whole = {name: tensor.clone() for name, tensor in tensors.items()}
    centroids = whole["code.centroids"]
    infinite = centroids.clone()
    infinite[0, 0] = torch.inf
    for changes, message in (
        ({"code.centroids": centroids[:-1].clone()}, "tensor code.centroids torch.float32 .* is unexpected"),
        ({"code.centroids": infinite}, "tensor code.centroids must be finite"),
        ({"code.places": torch.zeros(0, 24)}, "tensor code.places .* is unexpected"),
        ({"code.mask": whole["code.mask"].int()}, "tensor code.mask torch.int32 .* is unexpected"),
        ({"code.other": torch.ones(24)}, "tensor code.other .* is unexpected"),
        ({"other": torch.ones(24)}, "expected the tensor residual_scale, or those of a code"),
        ({"code.weight": None}, "tensor code.weight is missing"),
        ({"code.scale": None}, "tensor code.scale is missing"),
    ):
        changed = {name: tensor for name, tensor in (whole | changes).items() if tensor is not None}
        save_file(changed, path, metadata=metadata)
        with pytest.raises(ValueError, match=message):
            load_reader(tmp_path)
    save_file(whole, path, metadata=metadata | {"cut_layer": "1"})
    with pytest.raises(ValueError, match="measured at"):
        load_reader(tmp_path)


def test_commands_read_and_write_what_was_trained(tiny_reader, task, tmp_path, capsys):
    """Train, encode without original ids, answer, and the float store of the same reader."""
    start, out = tmp_path / "start", tmp_path / "out"
    tiny_reader().save(start)
    questions, passages = str(tmp_path / "facts.jsonl"), str(tmp_path / "passages.jsonl")
    options = "--steps 2 --batch-size 2 --passages 3 --evaluate-every 2 --target-length 5 --centroids --masked-bits 9"
    files = ["--reader", str(start), "--train", questions, "--dev", questions, "--out", str(out)]
    length = ["--passage-length", str(LENGTH)]
    assert main(["train", "btr", *files, *options.split(), *length]) == 0
    reader = str(out / BEST)
    for store, more in (("bits", ["--original-ids", "drop", "--keep", "0.7"]), ("floats", ["--kind", "float32"])):
        named = ["--reader", reader, "--out", str(tmp_path / store)]
        assert main(["encode", passages, *named, *length, *more]) == 0, store
        results = [
            "--questions",
            questions,
            "--store",
            str(tmp_path / store),
            "--out",
            str(tmp_path / f"{store}.jsonl"),
        ]
        assert main(["answer", "--reader", reader, *results, "--max-new-tokens", "4"]) == 0, store
    assert Store(tmp_path / "bits").settings.masked_bits == 9
    capsys.readouterr()
    for command, message in (
        (["calibrate", passages, "--reader", reader], "was trained with centroids"),
        (
            ["encode", passages, "--reader", reader, "--out", str(tmp_path / "x"), "--masked-bits", "8"],
            "stores 9 of 24",
        ),
        (["encode", passages, "--reader", reader, "--out", str(tmp_path / "x")], f"at most {LENGTH}"),
    ):
        assert main([*command, *(length if "8" in command else [])]) != 0
        assert message in capsys.readouterr().err


def test_answers_do_not_depend_on_how_many_are_read_at_once(coded, task, tmp_path):
    reader = coded(9)
    encode_corpus(
        PassageEncoder(reader, passage_length=LENGTH), tmp_path / "passages.jsonl", tmp_path / "s", progress=False
    )
    store, questions = Store(tmp_path / "s"), list(read_questions(tmp_path / "facts.jsonl", "nq", reader.tokenizer))
    answers = [
        [result["generation"] for result in Answerer(ReaderEngine(reader, "btr"), store, 4).answer(questions, size)]
        for size in (1, 3)
    ]
    assert answers[0] == answers[1] and len(answers[0]) == len(questions)


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
