"""Texts to vectors: a local Hugging Face encoder with mean pooling, as Contriever and sentence encoders have it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..digests import file_digest
from ..jsonl import read_json_object

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


class TextEncoder:
    """Vectors of texts: the mean of the encoder's last states over a text's tokens.

    directory: config, safetensors weights and tokenizer of an encoder (BERT-type), read from there and nowhere else.
    max_length: tokens that a text is cut to. Raises `FileNotFoundError` or `ValueError` naming what is missing or not
    of that kind; nothing is unpickled, and no code of the directory runs.

    >>> encoder = TextEncoder("all-MiniLM-L6-v2/")  # doctest: +SKIP
    >>> encoder.encode(["who wrote hamlet"]).shape  # doctest: +SKIP
    (1, 384)
    """

    def __init__(self, directory: str | Path, max_length: int = 256):
        from transformers import AutoModel, AutoTokenizer

        self.directory = Path(directory)
        if not (self.directory / "config.json").is_file():
            raise FileNotFoundError(f"{self.directory}: not an encoder's directory (no config.json)")
        if not any(self.directory.glob("*.safetensors")):
            raise FileNotFoundError(f"{self.directory}: no weights in safetensors files; others are not read")
        self._check_pooling()
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.directory, **local)
            self._model = AutoModel.from_pretrained(
                self.directory, use_safetensors=True, dtype=torch.float32, **local
            ).eval()
        except Exception as error:  # the library raises of every kind for files that are not what they should be
            raise ValueError(f"{self.directory}: no encoder can be loaded: {error}") from None
        if self._model.config.is_encoder_decoder:
            raise ValueError(f"{self.directory}: expected an encoder, got an encoder-decoder")
        longest = getattr(self._model.config, "max_position_embeddings", None) or max_length
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3, got {max_length}")
        self.max_length = min(max_length, longest)

    def _check_pooling(self) -> None:
        """Sentence encoders say how they pool; vectors pooled otherwise would be silently bad."""
        path = self.directory / "1_Pooling" / "config.json"
        if not path.is_file():
            return
        pooling = read_json_object(path, "not a pooling configuration")
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
        if modes and modes != ["pooling_mode_mean_tokens"]:
            raise ValueError(f"{path}: expected mean pooling, got {', '.join(modes)}; pass vectors instead")

    @property
    def channels(self) -> int:
        """d of the vectors."""
        return self._model.config.hidden_size

    def fingerprint(self) -> str:
        """SHA-256 of what the vectors depend on: configuration, weights, tokenizer and the length texts are cut to."""
        digest = hashlib.sha256(str(self.max_length).encode())
        names = [path for name in _TOKENIZER_FILES if (path := self.directory / name).is_file()]
        for path in [self.directory / "config.json", *sorted(self.directory.glob("*.safetensors")), *names]:
            digest.update(f"{path.name}:{file_digest(path)}\n".encode())
        return digest.hexdigest()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 32, bar: tqdm | None = None) -> np.ndarray:
        """The vectors of n texts, float32 `(n, d)`; texts of similar length share a batch. bar: counts the texts."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        vectors = np.empty((len(texts), self.channels), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self._tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(states.dtype)
            vectors[rows] = ((states * mask).sum(1) / mask.sum(1).clamp_min(1)).numpy()
            if bar is not None:
                bar.update(len(rows))
        return vectors
