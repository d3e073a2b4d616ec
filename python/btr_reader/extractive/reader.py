"""An extractive reader and the directory that it is kept in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from ..digests import add_tensors
from ..jsonl import read_json_object
from ..model import CONFIG_FILE, WEIGHTS_FILE, load_tensors
from ..settings import ReaderSettings, default_cut_layer
from ..sign_code import SignCode
from .encoder import BertFusionEncoder
from .tokenizer import SpanTokenizer

FORMAT, VERSION = "btr-extractive-reader", 1
SETTINGS_FILE, HEAD_FILE = "extractive.json", "extractive.safetensors"


@dataclass(frozen=True, eq=False)
class ExtractiveReader:
    """A BERT that marks the answer in its passages (the paper's BTR-BERT).

    head: `(2, d)`, the logits of a token as the answer's first and as its last. query_length: places for the question
    in front of a passage. code: how its bits are restored; None until the reader is calibrated.
    """

    model: BertModel
    head: nn.Linear
    tokenizer: SpanTokenizer
    settings: ReaderSettings
    query_length: int = 32
    code: SignCode | None = None

    def __post_init__(self) -> None:
        config = self.config
        if not 1 <= self.settings.cut_layer < config.num_hidden_layers:
            raise ValueError(
                f"cut_layer must be in 1..{config.num_hidden_layers - 1} for {config.num_hidden_layers} layers, "
                f"got {self.settings.cut_layer}"
            )
        if config.hidden_act != "gelu":
            raise ValueError(f"the model's activation must be gelu, got {config.hidden_act!r}")
        if self.tokenizer.vocabulary_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocabulary_size} tokens, but the model only {config.vocab_size}"
            )
        if not 3 <= self.query_length < config.max_position_embeddings:
            raise ValueError(
                f"query_length must be in 3..{config.max_position_embeddings - 1}, got {self.query_length}"
            )

    @property
    def config(self) -> BertConfig:
        return self.model.config

    @property
    def channels(self) -> int:
        return self.config.hidden_size

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def longest_passage(self) -> int:
        """Tokens that a passage can have."""
        return self.config.max_position_embeddings - self.query_length

    def check_passage_length(self, length: int) -> None:
        """`ValueError` for passages of more tokens than the model has positions for."""
        if length > self.longest_passage:
            raise ValueError(f"passage_length must be at most {self.longest_passage} for this model, got {length}")

    def with_settings(self, settings: ReaderSettings) -> ExtractiveReader:
        """The same weights cut elsewhere; the code belongs to the old cut and is dropped where the cut changes."""
        return replace(self, settings=settings, code=self.code if settings == self.settings else None)

    def to(self, device: torch.device | str) -> ExtractiveReader:
        """The reader on a device. Model, head and code themselves are moved."""
        code = None if self.code is None else self.code.to(device)
        return replace(self, model=self.model.to(device), head=self.head.to(device), code=code)

    def passage_states(self, ids: Tensor, sizes: Tensor) -> Tensor:
        """What a store keeps, `(N, T, d)`, of passages read alone: normalised states (less what their code foretells).

        ids: int64 `(N, T)`; sizes: int32 `(N, T)`, 0 for padding; every passage needs a token.
        """
        states = BertFusionEncoder(self.model, self.query_length).passage_states(ids, sizes, self.settings)
        return states if self.code is None else self.code.deviation(states, ids)

    def fingerprint(self) -> str:
        """SHA-256 of all that the states in a store depend on: cut, tokenizer, places, layers 1..k, tables."""
        settled = {**self.settings.to_dict(), "query_length": self.query_length}
        digest = hashlib.sha256(json.dumps(settled, sort_keys=True).encode())
        digest.update(self.tokenizer.fingerprint().encode())
        named = list(self.model.embeddings.named_parameters())
        for number, layer in enumerate(self.model.encoder.layer[: self.settings.cut_layer]):
            named += [(f"{number}.{name}", tensor) for name, tensor in layer.named_parameters()]
        if self.code is not None:
            named += list(self.code.named_buffers())
        add_tensors(digest, named)
        return digest.hexdigest()

    def save(self, directory: str | Path) -> None:
        """Writes a Hugging Face directory of the BERT, and beside it the head, the code and where it is cut."""
        directory = Path(directory)
        self.model.save_pretrained(directory)
        self.tokenizer.save(directory)
        tensors = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        if self.code is not None:
            tensors |= {f"code.{name}": tensor for name, tensor in self.code.state_dict().items()}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, directory / HEAD_FILE)
        record = {"format": FORMAT, "version": VERSION, "cut": self.settings.to_dict()}
        record |= {"query_length": self.query_length, "calibrated": self.code is not None and self.code.calibrated}
        (directory / SETTINGS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_extractive_reader(
    directory: str | Path, settings: ReaderSettings | None = None, query_length: int = 32
) -> ExtractiveReader:
    """Loads what `ExtractiveReader.save` wrote, or a plain BERT directory, whose head is then new and random.

    settings: where it is cut, if not where it says itself (a plain directory: at three quarters of its layers, after a
    whole layer). query_length: of a plain directory. Weights are read from safetensors files only. Raises
    `FileNotFoundError` or `ValueError` naming what is missing or wrong.

    >>> load_extractive_reader("all-MiniLM-L6-v2/").settings.cut_layer  # doctest: +SKIP
    4
    """
    directory = Path(directory)
    model = _load_bert(directory)
    tokenizer = SpanTokenizer.load(directory)
    path = directory / SETTINGS_FILE
    if path.is_file():
        reader = _load_rest(directory, path, model, tokenizer)
        return reader if settings is None else reader.with_settings(settings)
    head = nn.Linear(model.config.hidden_size, 2)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        head.weight.normal_(std=model.config.initializer_range, generator=generator)
        head.bias.zero_()
    settings = settings or ReaderSettings(default_cut_layer(model.config.num_hidden_layers), "layer_output")
    return ExtractiveReader(model, head, tokenizer, settings, query_length)


def _load_bert(directory: Path) -> BertModel:
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: not a model's directory (no {CONFIG_FILE})")
    record = read_json_object(path, "not a configuration")
    if record.get("model_type") != "bert":
        raise ValueError(f"{path}: expected a model of type 'bert', got {record.get('model_type')!r}")
    model = BertModel(BertConfig.from_dict(record), add_pooling_layer=False)
    # Models with a head of their own keep the BERT under this name.
    state = {name.removeprefix("bert."): t.float() for name, t in load_tensors(directory / WEIGHTS_FILE).items()}
    expected = model.state_dict()
    for name, tensor in expected.items():
        found = state.get(name)
        if found is None or found.shape != tensor.shape:
            got = "none" if found is None else tuple(found.shape)
            raise ValueError(f"{directory / WEIGHTS_FILE}: tensor {name} must be {tuple(tensor.shape)}, got {got}")
    model.load_state_dict({name: state[name] for name in expected})
    return model.eval()


def _load_rest(directory: Path, path: Path, model: BertModel, tokenizer: SpanTokenizer) -> ExtractiveReader:
    record = read_json_object(path, "damaged settings")
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ValueError(f"{path}: expected format {FORMAT}, version {VERSION}")
    query_length, calibrated = record.get("query_length"), record.get("calibrated")
    if isinstance(query_length, bool) or not isinstance(query_length, int) or not isinstance(calibrated, bool):
        raise ValueError(f"{path}: query_length must be an integer and calibrated true or false")
    settings = ReaderSettings.from_dict(record.get("cut"), f"{path}: cut")
    tensors = load_tensors(directory / HEAD_FILE)
    d, where = model.config.hidden_size, str(directory / HEAD_FILE)
    code = {name.removeprefix("code."): tensor for name, tensor in tensors.items() if name.startswith("code.")}
    expected = {"head.weight": (2, d), "head.bias": (2,)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith("code.")}
    if found != expected:
        raise ValueError(f"{where}: expected the tensors {expected} and those of a code, got {found}")
    for name in expected:
        if tensors[name].dtype != torch.float32 or not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{where}: tensor {name} must be finite float32")
    head = nn.Linear(d, 2)
    head.load_state_dict({name: tensors[f"head.{name}"] for name in ("weight", "bias")})
    reader = ExtractiveReader(model, head, tokenizer, settings, query_length)
    if not code:
        return reader
    read = SignCode.from_tensors(
        code, where, d, tokenizer.vocabulary_size, reader.longest_passage if "places" in code else None, calibrated
    )
    return replace(reader, code=read)
