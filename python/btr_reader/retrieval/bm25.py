"""Lexical retrieval: BM25 (Robertson and Zaragoza, 2009) by bm25s, which scores every word of a passage beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from ..passages import Passage
from .retriever import Ranking, Retriever, best, ranking

if TYPE_CHECKING:
    import bm25s

StemmerName = Literal["none", "english"]
STEMMERS: tuple[str, ...] = get_args(StemmerName)
# What bm25s writes of an index.
FILES = (
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "params.index.json",
    "vocab.index.json",
)


class Bm25Retriever(Retriever):
    """BM25 over title and text: words of two letters or more in lower case, without English stop words.

    Lucene's variant with k1 = 1.5 and b = 0.75, the defaults of bm25s. stemmer: `none`, or `english`, which takes
    inflected forms as one word and needs PyStemmer. Passages that share no word with the question are not found: a
    ranking can be shorter than k. Raises `ValueError` for a corpus without words.

    >>> corpus = [Passage("1", "Cats", "they purr"), Passage("2", "Dogs", "they bark")]
    >>> [position for position, score in Bm25Retriever(corpus, progress=False).rank(["which animals bark"], 2)[0]]
    [1]
    """

    def __init__(self, passages: Sequence[Passage], *, stemmer: StemmerName = "none", progress: bool = True):
        import bm25s

        super().__init__(passages)
        self._tokenizer = _tokenizer(stemmer)
        texts = (f"{passage.title} {passage.text}" for passage in passages)
        ids = self._tokenizer.tokenize(
            texts, update_vocab=True, return_as="ids", length=len(passages), allow_empty=False, show_progress=progress
        )
        vocabulary = dict(self._tokenizer.stem_to_sid if stemmer != "none" else self._tokenizer.word_to_id)
        if not vocabulary:
            raise ValueError("passages: there is no word in them to find them by")
        self._bm25 = bm25s.BM25()
        self._bm25.index((ids, vocabulary), create_empty_token=False, show_progress=progress)

    def rank(self, questions: Sequence[str] | np.ndarray, k: int) -> list[Ranking]:
        if isinstance(questions, np.ndarray):
            raise TypeError("questions: BM25 ranks by their texts, got vectors")
        rankings = []
        for ids in self._tokenizer.tokenize(
            list(questions), update_vocab=False, return_as="ids", allow_empty=False, show_progress=False
        ):
            if not ids:
                rankings.append([])
                continue
            scores = torch.from_numpy(self._bm25.get_scores_from_ids(ids))
            positions = best(scores, k)
            positions = positions[scores[positions] > 0]
            rankings.append(ranking(positions, scores[positions]))
        return rankings

    def save(self, directory: Path) -> None:
        """Writes the files `FILES` into the directory."""
        self._bm25.save(directory, show_progress=False)

    @classmethod
    def load(cls, directory: Path, passages: Sequence[Passage], stemmer: StemmerName = "none") -> Bm25Retriever:
        """Opens what `save` wrote, mapped from disk; nothing is unpickled, and damage is a `ValueError`."""
        import bm25s

        retriever = cls.__new__(cls)
        Retriever.__init__(retriever, passages)
        try:
            index = bm25s.BM25.load(
                directory, mmap=True, allow_pickle=False, override_params={"backend": "numpy", "csc_backend": "numpy"}
            )
            _check(index, len(passages))
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise ValueError(f"{directory}: damaged index: {error}") from None
        retriever._bm25 = index
        retriever._tokenizer = _tokenizer(stemmer)
        if stemmer == "none":
            retriever._tokenizer.word_to_id = index.vocab_dict
        else:
            retriever._tokenizer.stem_to_sid = index.vocab_dict
        return retriever


def _tokenizer(stemmer: StemmerName) -> bm25s.tokenization.Tokenizer:
    from bm25s.tokenization import Tokenizer

    if stemmer not in STEMMERS:
        raise ValueError(f"stemmer must be one of {', '.join(STEMMERS)}, got {stemmer!r}")
    if stemmer == "none":
        return Tokenizer(stopwords="english")
    import Stemmer

    return Tokenizer(stopwords="english", stemmer=Stemmer.Stemmer(stemmer))


def _check(index: bm25s.BM25, passages: int) -> None:
    """The word ids and offsets of an index: with them, and with passage numbers in range, scoring stays in bounds."""
    scores, words = index.scores, index.vocab_dict
    if (index.method, index.dtype, index.int_dtype) != ("lucene", "float32", "int32"):
        raise ValueError(f"unexpected parameters {index.method!r}, {index.dtype!r}, {index.int_dtype!r}")
    if scores["num_docs"] != passages:
        raise ValueError(f"it is of {scores['num_docs']!r} passages, expected {passages}")
    if not isinstance(words, dict) or sorted(words.values()) != list(range(len(words))):
        raise ValueError("word ids must be 0, 1, ...")
    data, indices, offsets = scores["data"], scores["indices"], scores["indptr"]
    if data.dtype != np.float32 or any(array.dtype.kind != "i" for array in (indices, offsets)):
        raise ValueError(f"unexpected types {data.dtype}, {indices.dtype}, {offsets.dtype}")
    if data.ndim != 1 or data.shape != indices.shape or offsets.shape != (len(words) + 1,):
        raise ValueError(f"unexpected shapes {data.shape}, {indices.shape}, {offsets.shape}")
    if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        raise ValueError("offsets of words must rise from 0 to the number of scores")
    if len(indices) and (indices.min() < 0 or indices.max() >= passages):
        raise ValueError(f"passage numbers must be in 0..{passages - 1}")
