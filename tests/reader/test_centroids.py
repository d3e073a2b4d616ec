"""The T5 reader on bits of what vocabulary id and place do not foretell: training, commands, reading."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from btr_reader.answering import Answerer, check_store
from btr_reader.batches import pad_passages, pad_queries
from btr_reader.cli import main
from btr_reader.encoder import FusionEncoder
from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.engine import ReaderEngine
from btr_reader.reader import load_reader
from btr_reader.shares import Compression
from btr_reader.storage_comparison import compare_storage
from btr_reader.store import Store
from btr_reader.tasks import read_questions
from btr_reader.training import loop
from btr_reader.training.forward import Batch, target_logits
from btr_reader.training.loop import Trainer, with_code
from btr_reader.training.run import BEST

from .helpers import CENTROIDS, killed_at

LENGTH = CENTROIDS.passage_length


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
    settings = replace(CENTROIDS, **options, compression=Compression(offline=offline))
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


def test_a_killed_run_goes_on_with_the_code_it_had(coded, task, tmp_path):
    settings = replace(CENTROIDS, masked_bits=9, steps=5)

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


def test_what_a_run_has_measured_is_not_measured_again(tiny_reader, task, tmp_path, monkeypatch):
    """Neither when it goes on nor when it is done; the reader brings no code, which is measured by the run itself."""
    settings = replace(CENTROIDS, masked_bits=9, steps=5)

    def trainer(name):
        return Trainer(tiny_reader(), "btr", settings, tmp_path / name, progress=False)

    whole = trainer("whole")
    with pytest.raises(RuntimeError, match="the code is measured when training begins"):
        whole.trained()
    best = whole.train(task, task[:2])
    assert whole.trained().code.centroids.any()
    killed_at(4, trainer("killed"), task, task[:2])
    monkeypatch.setattr(loop, "centroid_code", None)
    assert trainer("killed").train(task, task[:2]) == trainer("whole").train(task, task[:2]) == best
    with pytest.raises(TypeError):
        trainer("new").train(task, task[:2])
    one, two = (load_reader(tmp_path / name / BEST).code.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items()) and one["centroids"].any()


def test_runs_of_before_a_setting_go_on(coded, task, tmp_path):
    """A record that lacks a setting is of its default."""
    settings = replace(CENTROIDS, centroids=False)
    reader = replace(coded(0), code=None, residual_scale=torch.ones(24))
    best = Trainer(reader, "btr", settings, tmp_path, progress=False).train(task, task[:2])
    path = tmp_path / "finished.json"
    record = json.loads(path.read_text())
    del record["run"]["settings"]["centroids"], record["run"]["settings"]["same_id_first"]
    del record["run"]["settings"]["objectives"]["top_tokens"]
    path.write_text(json.dumps(record))
    again = replace(coded(0), code=None, residual_scale=torch.ones(24))
    assert Trainer(again, "btr", settings, tmp_path, progress=False).train(task, task[:2]) == best
    with pytest.raises(ValueError, match="which differs in code, settings.centroids;"):
        Trainer(coded(0), "btr", CENTROIDS, tmp_path, progress=False).train(task, task[:2])


def test_training_goes_on_from_a_code_that_fits(coded, task):
    reader = coded(9)
    with torch.no_grad():
        reader.code.scale.mul_(2)
    assert with_code(reader, task, replace(CENTROIDS, masked_bits=9)) is reader
    for other in ({"masked_bits": 8}, {"masked_bits": 9, "passage_length": LENGTH + 1}):
        again = with_code(reader, task, replace(CENTROIDS, **other))
        assert again.code.stored_bits == other["masked_bits"] and not torch.equal(again.code.scale, reader.code.scale)


def test_codes_and_settings_that_do_not_fit_are_refused(coded, task, tmp_path):
    reader = coded(9)
    with pytest.raises(ValueError, match="the deformer form is trained on all tokens and no bits"):
        Trainer(reader, "deformer", CENTROIDS, tmp_path)
    with pytest.raises(ValueError, match="centroids: they need calibrate"):
        replace(CENTROIDS, calibrate=False)
    with pytest.raises(ValueError, match="residual_scale must be None for a reader with a code"):
        replace(reader, residual_scale=torch.ones(24))
    with pytest.raises(ValueError, match="masked_bits: the reader's code stores 9 of 24 bits, got 8"):
        PassageEncoder(reader, masked_bits=8, passage_length=LENGTH)
    with pytest.raises(ValueError, match=f"passage_length must be at most {LENGTH}"):
        PassageEncoder(reader, passage_length=LENGTH + 1)
    with pytest.raises(ValueError, match="original_ids: the reader's code restores bits by the tokens' ids"):
        PassageEncoder(coded(0), passage_length=LENGTH, original_ids=False)
    with pytest.raises(ValueError, match="reader: must be one of plain bits"):
        compare_storage(reader, [passage for example in task for passage in example.passages])
    assert reader.with_settings(replace(reader.settings, cut_point="layer_output")).code is None


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
        assert main(["encode", passages, *named, *more]) == 0, store
        assert Store(tmp_path / store).settings.passage_length == LENGTH  # that of the training, unless told
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
    again = ["encode", passages, "--reader", reader, "--out", str(tmp_path / "x")]
    for command, message in (
        (["calibrate", passages, "--reader", reader], "was trained with centroids"),
        ([*again, "--masked-bits", "8"], "stores 9 of 24"),
        ([*again, "--passage-length", str(LENGTH + 1)], f"at most {LENGTH}"),
        ([*again, "--codebook-bytes", "3"], "codebook-bytes: the reader was trained to store 9 of its bits"),
    ):
        assert main(command) != 0
        assert message in capsys.readouterr().err
    # Without --centroids a student of plain bits comes of it.
    again = ["--reader", reader, "--train", questions, "--dev", questions, "--out", str(tmp_path / "plain")]
    assert main(["train", "btr", *again, *options.replace("--centroids", "").split(), *length]) == 0
    assert "without --centroids the student is one of plain bits" in capsys.readouterr().out
    plain = load_reader(tmp_path / "plain" / BEST)
    assert plain.code is None and plain.residual_scale is not None


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
