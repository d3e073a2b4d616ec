"""The reader's tokenizer: T5's unigram vocabulary with 100 sentinels, loaded from a directory or trained on text.

Only the `tokenizers` library runs at reading time. Ids 0, 1 and 2 are `<pad>`, `</s>` and `<unk>`; the sentinels
`<extra_id_99> ... <extra_id_0>` stand at the end of the vocabulary, as in T5.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PAD, EOS, UNK = 0, 1, 2
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(99, -1, -1))
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BLANK = "▁"
_FILE = "tokenizer.json"


class ReaderTokenizer:
    """Text to token ids and back.

    >>> tokenizer = ReaderTokenizer.train(["the cat sat on the mat"] * 3, vocabulary_size=250)
    >>> tokenizer.decode(tokenizer.encode("the cat <extra_id_0>"))
    'the cat'
    """

    def __init__(self, backend: Tokenizer, source: str = "the tokenizer"):
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._check(source)
        self.sentinel = backend.token_to_id(SENTINELS[-1])

    def _check(self, source: str) -> None:
        """T5 tokenizers are known to come up with only `<unk>` and the sentinels; such a one must not get through."""
        pieces = self._backend.get_vocab_size(with_added_tokens=True)
        if pieces <= 3 + len(SENTINELS) + 1:
            raise ValueError(f"{source}: the vocabulary has only {pieces} entries: its pieces did not load")
        expected = {"<pad>": PAD, "</s>": EOS, "<unk>": UNK}
        found = {token: self._backend.token_to_id(token) for token in expected}
        if found != expected:
            raise ValueError(f"{source}: expected the special tokens {expected}, found {found}")
        missing = [token for token in SENTINELS if self._backend.token_to_id(token) is None]
        if missing:
            raise ValueError(f"{source}: {len(missing)} of T5's 100 sentinels are missing, {missing[-1]} first")

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids; a model's output may be wider (T5 has 32,100 tokens and 32,128 outputs)."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The token ids of the text, without an end token."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_passage(self, text: str, max_length: int) -> list[int]:
        """The token ids of the text cut to `max_length` ids, the last of them the end token."""
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2 (one token and the end token), got {max_length}")
        return [*self.encode(text)[: max_length - 1], EOS]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, without special tokens; ids beyond the vocabulary (padding outputs) are left out."""
        size = self.vocabulary_size
        return self._backend.decode([i for i in ids if i < size], skip_special_tokens=True).strip()

    def letter_id(self, letter: str) -> int:
        """The single token that stands for an option letter at the start of a word.

        Raises `ValueError` where the letter is not one token: choice logits would not be comparable.
        """
        ids = self.encode(letter)
        if len(ids) != 1 or ids[0] == UNK:
            raise ValueError(f"option letter {letter!r} is not one token of this tokenizer (ids {ids})")
        return ids[0]

    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's definition, the same before and after saving.

        The library reads numbers back with an error in the last digit, so piece scores count to four decimals.
        """
        definition = json.loads(self._backend.to_str(), parse_float=lambda number: f"{float(number):.4f}")
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json` and the configuration by which `transformers.AutoTokenizer` loads it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(directory / _FILE))
        configuration = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "additional_special_tokens": list(reversed(SENTINELS)),
            "model_max_length": 512,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> ReaderTokenizer:
        """Loads the tokenizer of a Hugging Face directory: `tokenizer.json`, or else SentencePiece's `spiece.model`."""
        directory = Path(directory)
        if (directory / _FILE).is_file():
            try:
                backend = Tokenizer.from_file(str(directory / _FILE))
            except Exception as error:  # the library raises bare Exception for a malformed file
                raise ValueError(f"{directory / _FILE}: not a tokenizer: {error}") from None
            return cls(backend, str(directory / _FILE))
        if (directory / "spiece.model").is_file():
            return cls._from_sentencepiece((directory / "spiece.model").read_bytes(), str(directory / "spiece.model"))
        raise FileNotFoundError(f"{directory}: no tokenizer there (neither tokenizer.json nor spiece.model)")

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int = 8000) -> ReaderTokenizer:
        """Trains a unigram vocabulary of at most `vocabulary_size` ids, sentinels and letters included, on the texts.

        Small texts give fewer pieces. Deterministic: the same texts give the same tokenizer.
        """
        import sentencepiece

        if vocabulary_size < 250:
            raise ValueError(f"vocabulary_size must be at least 250, got {vocabulary_size}")
        lines = (line.strip() for text in texts for line in text.split("\n"))
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line for line in lines if line),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocabulary_size - len(SENTINELS) - len(_LETTERS),
                hard_vocab_limit=False,
                character_coverage=1.0,
                pad_id=PAD,
                eos_id=EOS,
                unk_id=UNK,
                bos_id=-1,
                normalization_rule_name="nfkc",
                # A thread count of 1 keeps the sums of the EM steps, and so the pieces, in one order.
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else "unknown reason"
            raise ValueError(f"no tokenizer can be trained on this text: {reason}") from None
        return cls._from_sentencepiece(model.getvalue(), "the trained tokenizer")

    @classmethod
    def _from_sentencepiece(cls, model: bytes, source: str) -> ReaderTokenizer:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(f"{source}: not a SentencePiece model: {error}") from None
        count = processor.get_piece_size()
        pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(count)]
        return cls(_unigram_backend(pieces), source)


def _unigram_backend(pieces: list[tuple[str, float]]) -> Tokenizer:
    known = dict(pieces)
    # Multiple-choice reading compares the outputs for "A", "B", ...: each must be one token. Its score is just above
    # that of the two pieces it would else be read as, so that it hardly changes how any other word is read.
    floor = min(score for _, score in pieces)
    apart = {letter: known.get(_BLANK, floor) + known.get(letter, floor) for letter in _LETTERS}
    pieces = pieces + [(_BLANK + letter, apart[letter] + 0.01) for letter in _LETTERS if _BLANK + letter not in known]
    pieces = pieces + [(sentinel, 0.0) for sentinel in SENTINELS if sentinel not in known]
    backend = Tokenizer(models.Unigram(pieces, unk_id=UNK, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=_BLANK, prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(replacement=_BLANK, prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    backend.add_special_tokens(["<pad>", "</s>", "<unk>", *SENTINELS])
    return backend
