"""Questions and passages of an extractive reader as token ids, with where in the text each token stands."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast


class SpanTokenizer:
    """The tokenizer of a BERT-type model: a question is `[CLS] ... [SEP]`, a passage `... [SEP]`.

    Raises `ValueError` for one that does not know where its tokens stand in the text, or has no `[CLS]` and `[SEP]`.
    """

    def __init__(self, fast: PreTrainedTokenizerFast, source: str = "the tokenizer"):
        if not getattr(fast, "is_fast", False):
            raise ValueError(f"{source}: expected a tokenizer with offsets (a fast one, tokenizer.json)")
        if fast.cls_token_id is None or fast.sep_token_id is None:
            raise ValueError(f"{source}: expected a BERT tokenizer, with tokens for the start and for separation")
        self._fast, self._backend = fast, fast.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._first, self._end = fast.cls_token_id, fast.sep_token_id

    @classmethod
    def load(cls, directory: str | Path) -> SpanTokenizer:
        """From the tokenizer files of a Hugging Face directory, and from nowhere else."""
        try:
            fast = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the library raises of every kind for files that are not what they should be
            raise ValueError(f"{directory}: no tokenizer can be loaded: {error}") from None
        return cls(fast, str(directory))

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode_question(self, text: str, max_length: int) -> list[int]:
        """The token ids of a question, cut to `max_length` with both special tokens."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [self._first, *ids[: max_length - 2], self._end]

    def encode_passage(self, text: str, max_length: int) -> list[int]:
        """The token ids of the text cut to `max_length` ids, the last of them the end token."""
        return self.encode_with_offsets(text, max_length)[0]

    def encode_with_offsets(self, text: str, max_length: int) -> tuple[list[int], list[tuple[int, int]]]:
        """The same, and where the characters of each token but the end token begin and end."""
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2 (one token and the end token), got {max_length}")
        encoding = self._backend.encode(text, add_special_tokens=False)
        return [*encoding.ids[: max_length - 1], self._end], encoding.offsets[: max_length - 1]

    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's definition."""
        definition = json.loads(self._backend.to_str())
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()

    def save(self, directory: str | Path) -> None:
        """Writes the files by which `load` and `transformers.AutoTokenizer` find it again."""
        self._fast.save_pretrained(str(directory))
