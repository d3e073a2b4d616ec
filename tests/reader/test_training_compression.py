"""Students are trained on what a store will give back: merged tokens, masked bits, or both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import btr_kernels
from btr_reader.batches import pad_passages, pad_queries
from btr_reader.encoder import FusionEncoder
from btr_reader.encoding import PassageEncoder, encode_corpus
from btr_reader.engine import ReaderEngine
from btr_reader.reader import load_reader
from btr_reader.shares import Compression
from btr_reader.store import Store
from btr_reader.token_statistics import load_token_statistics
from btr_reader.training.forward import Batch, target_logits
from btr_reader.training.loop import Trainer
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
    objectives=Objectives(distillation=0.0, divergence=0.0),
)


@pytest.mark.parametrize(
    ("masked_bits", "offline", "same_id_first"),
    [(9, 1.0, False), (0, 0.6, True), (9, 0.6, False), (16, 0.5, True)],
)
def test_what_training_sees_is_what_the_store_restores(
    tiny_reader, task, tmp_path, masked_bits, offline, same_id_first
):
    compression = Compression(offline=offline)
    options = {"masked_bits": masked_bits, "compression": compression, "same_id_first": same_id_first}
    out = tmp_path / "out"
    reader = replace(tiny_reader(), residual_scale=torch.rand(24) + 0.5)
    Trainer(reader, "btr", replace(SETTINGS, **options), out, progress=False).train(task, task[:2])
    saved = load_reader(out / BEST)
    student = Trainer(saved, "btr", replace(SETTINGS, **options), tmp_path / "again", progress=False).student
    tables = None
    if masked_bits:
        tables = load_token_statistics(out / BEST, saved).tables(masked_bits)
        student.use_tables(tables)
    encoder = PassageEncoder(
        saved, keep=offline, passage_length=LENGTH, same_id_first=same_id_first, masked_bits=masked_bits
    )
    encode_corpus(encoder, tmp_path / "passages.jsonl", tmp_path / "store", tables=tables, progress=False)
    stored = Store(tmp_path / "store").fetch([[passage.id for passage in example.passages] for example in task[:2]])
    tokenizer = saved.tokenizer
    queries = pad_queries([tokenizer.encode(example.query) for example in task[:2]])
    ids = pad_passages(
        [[tokenizer.encode_passage(p.reader_text, LENGTH) for p in example.passages] for example in task[:2]]
    )
    seen, merged, _, _ = student._binary(student._offline(FusionEncoder(student.model), ids), ids, 1.0)
    present = stored.sizes > 0
    width = stored.sizes.shape[-1]  # the store is padded to what is there
    assert torch.equal(merged.sizes[:, :, :width], stored.sizes) and not merged.sizes[:, :, width:].any()
    assert torch.equal(btr_kernels.pack_bits(seen.signs)[:, :, :width][present], stored.content[present])
    targets = torch.tensor([[tokenizer.sentinel, 5, 1], [tokenizer.sentinel, 6, 1]])
    with torch.no_grad():
        expected = target_logits(saved.model, ReaderEngine(saved, "btr").encode(queries, stored), targets)
        torch.testing.assert_close(student(Batch(queries, ids, targets)).logits, expected, rtol=1e-3, atol=1e-4)


def test_a_killed_run_goes_on_with_the_masks_it_had(tiny_reader, task, tmp_path):
    """They were measured before the checkpoint, at an evaluation, on weights that no longer are."""
    settings = replace(SETTINGS, masked_bits=9, steps=5)

    def trainer(name):
        reader = replace(tiny_reader(), residual_scale=torch.ones(24))
        return Trainer(reader, "btr", settings, tmp_path / name, progress=False)

    whole = trainer("whole")
    best = whole.train(task, task[:2])
    killed_at(3, trainer("killed"), task, task[:2])
    going_on = trainer("killed")
    with torch.no_grad():
        for parameter in going_on.student.parameters():
            parameter.fill_(9)  # all of them come from the checkpoint
    assert going_on.train(task, task[:2]) == best
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, going_on.student.state_dict()[name]), name


def test_masks_follow_the_bits(tiny_reader, task, tmp_path):
    reader = replace(tiny_reader(), residual_scale=torch.ones(24))
    trainer = Trainer(reader, "btr", replace(SETTINGS, masked_bits=9), tmp_path / "out", progress=False)
    trainer._batches(task)
    before = trainer.student.mask.clone()
    trainer.train(task, task[:2])
    assert not torch.equal(before, trainer.student.mask)
    saved = load_reader(tmp_path / "out" / BEST)
    tables = load_token_statistics(tmp_path / "out" / BEST, saved).tables(9)
    assert (btr_kernels.unpack_bits(torch.from_numpy(tables.mask), 24) > 0).sum(1).eq(9).all()


def test_compression_that_a_form_does_not_have_is_refused(tiny_reader, tmp_path):
    for changes in ({"masked_bits": 9}, {"compression": Compression(offline=0.5)}):
        with pytest.raises(ValueError, match="the deformer form is trained on all tokens"):
            Trainer(tiny_reader(), "deformer", replace(SETTINGS, **changes), tmp_path)
    reader = replace(tiny_reader(), residual_scale=torch.ones(24))
    with pytest.raises(ValueError, match="masked_bits must be at most the 24 channels, got 25"):
        Trainer(reader, "btr", replace(SETTINGS, masked_bits=25), tmp_path)
    for changes, message in (
        ({"masked_bits": -1}, "masked_bits must be 0 or more"),
        ({"same_id_first": True}, "same_id_first: there is nothing to merge"),
        ({"statistics_passages": 0}, "statistics_passages must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SETTINGS, **changes)
