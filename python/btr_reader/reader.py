"""A reader and the directory that it is kept in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration

from .digests import add_tensors
from .encoder import FusionEncoder
from .model import CONFIG_FILE, WEIGHTS_FILE, load_config, load_tensors, model_from_state, random_model, save_model
from .settings import ReaderSettings, default_cut_layer
from .sign_code import SignCode
from .tokenizer import ReaderTokenizer

RESTORE_FILE = "btr.safetensors"
_SCALE, _CODE = "residual_scale", "code."


@dataclass(frozen=True, eq=False)
class Reader:
    """Weights, tokenizer and settings of a reader.

    `residual_scale` is rho of the method, float32 `(d,)`: the mean magnitude of every channel of the state at the cut.
    It is None until the reader is calibrated (`btr calibrate`); only reading *bits* needs it. `code` restores bits
    instead, of a reader trained with centroids; what is kept of a passage is then what the code does not foretell.
    """

    model: T5ForConditionalGeneration
    tokenizer: ReaderTokenizer
    settings: ReaderSettings
    residual_scale: torch.Tensor | None = None
    code: SignCode | None = None

    def __post_init__(self) -> None:
        self.settings.check_depth(self.config.num_layers)
        if self.tokenizer.vocabulary_size > self.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocabulary_size} tokens, "
                f"but the model only {self.config.vocab_size} embeddings"
            )
        scale = self.residual_scale
        if scale is not None and scale.shape != (self.config.d_model,):
            raise ValueError(f"residual_scale must have shape ({self.config.d_model},), got {tuple(scale.shape)}")
        if scale is not None and not bool(scale.isfinite().all()):
            raise ValueError("residual_scale must be finite")
        if self.code is not None and scale is not None:
            raise ValueError("residual_scale must be None for a reader with a code, which has a scale of its own")
        if self.code is not None and self.code.channels != self.config.d_model:
            raise ValueError(f"code must be of {self.config.d_model} channels, got {self.code.channels}")

    @property
    def config(self) -> T5Config:
        return self.model.config

    @property
    def calibrated(self) -> bool:
        """Whether bits can be restored."""
        return self.residual_scale is not None or self.code is not None

    @property
    def channels(self) -> int:
        return self.config.d_model

    @property
    def layers(self) -> int:
        """Encoder layers."""
        return self.config.num_layers

    @property
    def device(self) -> torch.device:
        return self.model.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.shared.weight.dtype

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Reader:
        """The reader on a device, its weights in `dtype` (as they are if it is None). Model and code themselves are
        moved; a code stays in float32."""
        scale = None if self.residual_scale is None else self.residual_scale.to(device)
        code = None if self.code is None else self.code.to(device)
        return replace(self, model=self.model.to(device=device, dtype=dtype), residual_scale=scale, code=code)

    def check_passage_length(self, length: int) -> None:
        """`ValueError` for passages of more tokens than the code knows places for."""
        if self.code is not None:
            self.code.check_passage_length(length)

    def with_settings(self, settings: ReaderSettings) -> Reader:
        """The same weights cut elsewhere; scale and code belong to the old cut and are dropped where it changes."""
        if settings == self.settings:
            return self
        return replace(self, settings=settings, residual_scale=None, code=None)

    def passage_states(self, ids: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """The states at the cut, `(N, T, d)`, of passages read alone (see `FusionEncoder.passage_states`), less what
        a code foretells of them."""
        states = FusionEncoder(self.model).passage_states(ids, sizes, self.settings)
        return states if self.code is None else self.code.deviation(states, ids)

    def offline_parameters(self) -> list[tuple[str, torch.Tensor]]:
        """The named tensors that the stored states depend on: embedding, position bias, encoder layers 1..k, tables of
        a code."""
        named = [("shared", self.model.shared.weight)]
        for index, block in enumerate(self.model.encoder.block[: self.settings.cut_layer]):
            named += [(f"{index}.{name}", tensor) for name, tensor in block.named_parameters()]
        if self.code is not None:
            named += list(self.code.named_buffers())
        return named

    def fingerprint(self) -> str:
        """SHA-256 of everything that the states in a store depend on: cut, tokenizer and `offline_parameters`.

        A reader whose upper layers or decoder were trained further keeps its fingerprint, and may use its old stores.
        """
        digest = hashlib.sha256(json.dumps(self.settings.to_dict(), sort_keys=True).encode())
        digest.update(self.tokenizer.fingerprint().encode())
        add_tensors(digest, self.offline_parameters())
        return digest.hexdigest()

    def save(self, directory: str | Path) -> None:
        """Writes a Hugging Face directory: configuration, safetensors, tokenizer, and what bits are restored with."""
        directory = Path(directory)
        save_model(self.model, directory, self.settings.to_dict())
        self.tokenizer.save(directory)
        if self.residual_scale is not None:
            save_residual_scale(directory, self.settings, self.residual_scale)
        if self.code is not None:
            _save_restoring(directory, self.settings, {_CODE + n: t for n, t in self.code.state_dict().items()})


def save_residual_scale(directory: str | Path, settings: ReaderSettings, scale: torch.Tensor) -> None:
    """Writes rho `(d,)` into the reader directory, with the cut that it was measured at."""
    _save_restoring(directory, settings, {_SCALE: scale.float()})


def _save_restoring(directory: str | Path, settings: ReaderSettings, tensors: dict[str, torch.Tensor]) -> None:
    metadata = {name: str(value) for name, value in settings.to_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, Path(directory) / RESTORE_FILE, metadata=metadata)


def load_reader(directory: str | Path) -> Reader:
    """Loads a reader directory.

    A plain T5 v1.1 directory without a `btr` section gets the paper's cut for its depth. Raises `FileNotFoundError` or
    `ValueError` naming the file that is missing or wrong.

    >>> reader = load_reader("reader/")  # doctest: +SKIP
    >>> reader.settings.cut_layer  # doctest: +SKIP
    9
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such reader directory")
    config, record = load_config(directory)
    where = f"{directory / CONFIG_FILE}: section 'btr'"
    settings = (
        ReaderSettings.from_dict(record["btr"], where)
        if "btr" in record
        else ReaderSettings(default_cut_layer(config.num_layers))
    )
    weights = directory / WEIGHTS_FILE
    state = load_tensors(weights)
    model = model_from_state(config, state, str(weights))
    path = directory / RESTORE_FILE
    tensors = _load_restoring(path, settings)
    reader = Reader(model, ReaderTokenizer.load(directory), settings, tensors.get(_SCALE))
    if not tensors or _SCALE in tensors:
        return reader
    code = {name.removeprefix(_CODE): tensor for name, tensor in tensors.items()}
    restored = SignCode.from_tensors(code, str(path), reader.channels, reader.tokenizer.vocabulary_size)
    if restored.centroids is None:
        raise ValueError(f"{path}: tensor code.centroids is missing")
    return replace(reader, code=restored)


def _load_restoring(path: Path, settings: ReaderSettings) -> dict[str, torch.Tensor]:
    """The residual scale, or the tensors of a code; empty for a reader without both."""
    if not path.is_file():
        return {}
    tensors = load_tensors(path)
    if not tensors or not (set(tensors) == {_SCALE} or all(name.startswith(_CODE) for name in tensors)):
        raise ValueError(f"{path}: expected the tensor {_SCALE}, or those of a code, got {sorted(tensors)}")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        measured_at = file.metadata() or {}
    expected = {name: str(value) for name, value in settings.to_dict().items()}
    if measured_at != expected:
        raise ValueError(
            f"{path}: measured at {measured_at}, but the reader is cut at {expected}: run btr calibrate again"
        )
    return tensors


def random_reader(
    config: T5Config,
    settings: ReaderSettings,
    *,
    tokenizer: ReaderTokenizer | None = None,
    texts: Iterable[str] = (),
    vocabulary_size: int = 8000,
    seed: int = 0,
) -> Reader:
    """A reader with random weights, for speed measurements and tests.

    Without a tokenizer one of at most `vocabulary_size` tokens is trained on the texts. The same arguments give the
    same reader, to the bit.
    """
    if tokenizer is None:
        tokenizer = ReaderTokenizer.train(texts, min(vocabulary_size, config.vocab_size))
    return Reader(random_model(config, seed), tokenizer, settings)
