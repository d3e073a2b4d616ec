"""Reader directories, tokenizers, and original Atlas checkpoints."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from btr_reader.atlas_checkpoint import convert_atlas, load_atlas_model
from btr_reader.reader import load_reader, random_reader
from btr_reader.settings import SHAPES, ReaderSettings, default_cut_layer, t5_config
from btr_reader.tokenizer import SENTINELS, ReaderTokenizer

from .helpers import SMALL, atlas_checkpoint


def test_save_and_load(reader, reader_directory):
    loaded = load_reader(reader_directory)
    assert loaded.settings == reader.settings
    assert loaded.fingerprint() == reader.fingerprint()
    assert torch.equal(loaded.residual_scale, reader.residual_scale)
    expected, got = reader.model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_output_head_is_not_the_embedding(reader, reader_directory):
    """transformers 5 ties the two on construction and on loading; ours must stay apart."""
    for model in (reader.model, load_reader(reader_directory).model):
        assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
        assert not torch.equal(model.lm_head.weight, model.shared.weight)
        assert model.encoder.embed_tokens.weight is model.shared.weight
        assert model.decoder.embed_tokens.weight is model.shared.weight
        assert not model.config.scale_decoder_outputs
    assert json.loads((reader_directory / "config.json").read_text())["tie_word_embeddings"] is False


def test_random_readers_follow_their_seed(tokenizer):
    def weights(seed):
        model = random_reader(t5_config(SMALL), ReaderSettings(2), tokenizer=tokenizer, seed=seed).model
        return torch.cat(
            [model.lm_head.weight.flatten(), model.encoder.block[1].layer[0].SelfAttention.q.weight.flatten()]
        )

    before = torch.random.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_true_shapes():
    base, large = t5_config("base"), t5_config("large")
    assert (base.d_model, base.d_ff, base.num_heads, base.num_layers, base.num_decoder_layers) == (
        768,
        2048,
        12,
        12,
        12,
    )
    assert (large.d_model, large.d_ff, large.num_heads, large.num_layers) == (1024, 2816, 16, 24)
    assert base.vocab_size == large.vocab_size == 32128
    assert (SHAPES["base"].cut_layer, SHAPES["large"].cut_layer) == (9, 20)
    assert (default_cut_layer(12), default_cut_layer(24)) == (9, 20)
    with pytest.raises(ValueError, match="shape must be one of"):
        t5_config("huge")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((-1,), "cut_layer must be"),
        ((2.0,), "cut_layer must be"),
        ((0,), "at least 1"),
        ((1, "middle"), "cut_point must be one of"),
    ],
)
def test_settings_out_of_range_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        ReaderSettings(*arguments)


def test_a_joint_layer_must_be_left(reader):
    with pytest.raises(ValueError, match="below the 4 encoder layers, got 4"):
        reader.with_settings(ReaderSettings(4))


def test_the_scale_belongs_to_its_cut(reader, reader_directory, tmp_path):
    assert reader.with_settings(ReaderSettings(1)).residual_scale is None
    assert reader.with_settings(reader.settings).residual_scale is reader.residual_scale
    reader.save(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["btr"]["cut_layer"] = 1
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"btr.safetensors: measured at .*run btr calibrate again"):
        load_reader(tmp_path)


def damage(directory, name, change):
    tensors = load_file(directory / name)
    change(tensors)
    save_file(tensors, directory / name)


def test_broken_reader_directories_are_named(reader, tmp_path):
    def fresh(name):
        reader.save(tmp_path / name)
        return tmp_path / name

    with pytest.raises(FileNotFoundError, match="no such reader directory"):
        load_reader(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not a reader directory"):
        load_reader(tmp_path / "empty")

    directory = fresh("a")
    (directory / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer there"):
        load_reader(directory)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        load_reader(directory)

    directory = fresh("b")
    damage(directory, "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"model.safetensors: tensor lm_head.weight is missing"):
        load_reader(directory)
    damage(directory, "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(2, 2)}))
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \(2, 2\), expected \(1100, 44\)"):
        load_reader(directory)
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"model.safetensors: damaged"):
        load_reader(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors"):
        load_reader(directory)

    directory = fresh("c")
    record = json.loads((directory / "config.json").read_text())
    for change, match in [
        ({"model_type": "bert"}, "model_type 't5'"),
        ({"btr": {"cut_layer": 1}}, "cut_layer and cut_point"),
        ({"btr": {"cut_layer": 9, "cut_point": "layer_output"}}, "measured at"),
        ({"feed_forward_proj": "relu"}, "expected feed_forward_proj 'gated-gelu'"),
        ({"tie_word_embeddings": True}, "expected tie_word_embeddings false"),
    ]:
        (directory / "config.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(ValueError, match=match):
            load_reader(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not valid JSON"):
        load_reader(directory)


def test_a_plain_t5_directory_gets_the_default_cut(reader, tmp_path):
    reader.save(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["btr"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "btr.safetensors").unlink()
    loaded = load_reader(tmp_path)
    assert loaded.settings == ReaderSettings(3)
    assert loaded.residual_scale is None


# The tokenizer


def test_tokenizer_ids_and_round_trip(tokenizer):
    assert tokenizer.vocabulary_size <= 1000
    assert tokenizer.sentinel == tokenizer.vocabulary_size - 1
    text = 'the "with" statement is used to wrap the execution of a block'
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("a <extra_id_0>")[-1] == tokenizer.sentinel
    assert tokenizer.encode("q <extra_id_0>") + tokenizer.encode("title: t") == tokenizer.encode(
        "q <extra_id_0> title: t"
    )
    assert tokenizer.encode_passage("the list " * 50, 10)[-1] == 1
    assert len(tokenizer.encode_passage("the list " * 50, 10)) == 10
    assert tokenizer.encode_passage("the", 10)[-1] == 1
    assert tokenizer.decode([30000, 1, 0]) == ""
    assert len({tokenizer.letter_id(letter) for letter in "ABCDEFGHIJ"}) == 10
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        tokenizer.encode_passage("a", 1)
    with pytest.raises(ValueError, match="not one token"):
        tokenizer.letter_id("Albatross")


def test_tokenizer_is_read_by_transformers(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("question: what is a list answer: <extra_id_0>", "title: T context: A naïve, Test  of\tit"):
        assert theirs(text).input_ids == [*tokenizer.encode(text), 1]
    assert theirs.pad_token_id == 0
    assert len(theirs) == tokenizer.vocabulary_size


def test_tokenizer_training_is_deterministic_and_checked():
    texts = ["the cat sat on the mat", "a dog ate the cat's food"] * 5
    one, two = (ReaderTokenizer.train(texts, 300) for _ in range(2))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != ReaderTokenizer.train(texts[:1], 300).fingerprint()
    with pytest.raises(ValueError, match="vocabulary_size must be at least 250"):
        ReaderTokenizer.train(texts, 100)
    with pytest.raises(ValueError, match="no tokenizer can be trained on this text"):
        ReaderTokenizer.train([])


def test_a_sentencepiece_model_loads_with_all_its_pieces(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "spiece"), model_type="unigram", vocab_size=60,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = ReaderTokenizer.load(tmp_path)
    assert tokenizer.vocabulary_size >= processor.get_piece_size() + 100
    for line in lines[:2]:
        assert tokenizer.encode(line) == processor.encode(line)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"spiece.model: not a SentencePiece model"):
        ReaderTokenizer.load(tmp_path)


def test_an_empty_vocabulary_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    record = json.loads((tmp_path / "tokenizer.json").read_text())
    pieces = {piece: score for piece, score in record["model"]["vocab"]}
    record["model"]["vocab"] = [[p, pieces[p]] for p in ("<pad>", "</s>", "<unk>", "▁", *SENTINELS)]
    for token in record["added_tokens"]:
        token["id"] = [p for p, _ in record["model"]["vocab"]].index(token["content"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="its pieces did not load"):
        ReaderTokenizer.load(tmp_path)


def test_a_tokenizer_wider_than_the_model_is_refused(tokenizer):
    with pytest.raises(ValueError, match="but the model only 500 embeddings"):
        random_reader(t5_config(replace(SMALL, vocabulary=500)), ReaderSettings(2), tokenizer=tokenizer)


# Original Atlas checkpoints


@pytest.mark.parametrize("prefix", ["reader.", "reader.module."])
def test_an_original_checkpoint_converts(reader, tmp_path, prefix):
    checkpoint = atlas_checkpoint(reader, tmp_path / "atlas", prefix)
    converted = convert_atlas(checkpoint, reader.tokenizer)
    assert converted.settings == ReaderSettings(3)
    config = converted.config
    assert (config.d_model, config.d_ff, config.num_heads, config.d_kv, config.num_layers) == (44, 72, 3, 12, 4)
    converted.save(tmp_path / "reader")
    loaded = load_reader(tmp_path / "reader").model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in reader.model.state_dict().items())


def test_half_precision_becomes_float32(make_reader, tmp_path):
    reader = make_reader()
    reader.model.bfloat16()
    model = load_atlas_model(atlas_checkpoint(reader, tmp_path / "atlas"))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


class _Trap:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_checkpoint_never_runs(reader, tmp_path):
    checkpoint = atlas_checkpoint(reader, tmp_path / "atlas", opt=_Trap(tmp_path / "owned"))
    with pytest.raises(ValueError, match=r"model.pth.tar: refused to unpickle the class .*open"):
        load_atlas_model(checkpoint)
    assert not (tmp_path / "owned").exists()


def test_an_unknown_options_class_is_named_and_can_be_read_as_attributes(reader, tmp_path, monkeypatch):
    module = types.ModuleType("atlas_src_options")
    module.Options = type("Options", (), {"__module__": "atlas_src_options"})
    monkeypatch.setitem(sys.modules, "atlas_src_options", module)
    opt = module.Options()
    opt.n_context = 40
    checkpoint = atlas_checkpoint(reader, tmp_path / "atlas", opt=opt)
    monkeypatch.delitem(sys.modules, "atlas_src_options")
    with pytest.raises(ValueError, match=r"refused to unpickle the class atlas_src_options.Options"):
        load_atlas_model(checkpoint)
    model = load_atlas_model(checkpoint, ("atlas_src_options.Options",))
    assert torch.equal(model.lm_head.weight, reader.model.lm_head.weight)


def test_broken_checkpoints_are_named(reader, tmp_path):
    with pytest.raises(FileNotFoundError, match="not an Atlas checkpoint"):
        load_atlas_model(tmp_path)
    (tmp_path / "model.pth.tar").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"model.pth.tar: not a checkpoint"):
        load_atlas_model(tmp_path)
    torch.save({"step": 1}, tmp_path / "model.pth.tar")
    with pytest.raises(ValueError, match="entry 'model'"):
        load_atlas_model(tmp_path)
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, tmp_path / "model.pth.tar")
    with pytest.raises(ValueError, match="no tensor of a reader"):
        load_atlas_model(tmp_path)
    for name, match in [
        ("lm_head.weight", "lm_head.weight is missing"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "not a T5 v1.1 reader"),
        ("decoder.block.1.layer.1.EncDecAttention.k.weight", "EncDecAttention.k.weight is missing"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_atlas_model(atlas_checkpoint(reader, tmp_path / "partial", **{f"reader.{name}": None}))
