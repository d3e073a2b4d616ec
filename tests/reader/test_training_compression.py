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
from btr_reader.jsonl import write_jsonl
from btr_reader.reader import load_reader
from btr_reader.shares import Compression
from btr_reader.store import Store
from btr_reader.token_statistics import load_token_statistics
from btr_reader.training.examples import read_examples
from btr_reader.training.facts import fact_corpus, fact_questions
from btr_reader.training.forward import Batch, target_logits
from btr_reader.training.loop import Trainer
from btr_reader.training.run import BEST
from btr_reader.training.settings import Objectives, TrainingSettings

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


@pytest.fixture
def task(tmp_path, facts_tokenizer):
    questions = list(fact_questions("nq", 6, 3))
    write_jsonl(tmp_path / "facts.jsonl", questions)
    write_jsonl(tmp_path / "passages.jsonl", fact_corpus(questions))
    return read_examples(tmp_path / "facts.jsonl", "nq", facts_tokenizer)


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
