"""`btr index`: a corpus into an index to retrieve from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def index(
    passages: Positional[Path],
    /,
    out: Path,
    kind: Literal["bm25", "dense", "binary"] = "bm25",
    stemmer: Literal["none", "english"] = "none",
    model: Path | None = None,
    vectors: Path | None = None,
    similarity: Literal["cosine", "dot"] = "cosine",
    passage_length: int = 256,
    batch_size: int = 32,
) -> None:
    """Builds an index of a corpus, from which btr answer and btr retrieve find passages for questions.

    Interrupted, it is continued by the same command, which also checks the files that are there.

    Args:
        passages: Corpus in Atlas' format: one JSON object a line with id, title, text and optionally section.
        out: Index directory.
        kind: Words (bm25), vectors (dense), or the signs of vectors, 32 times smaller (binary).
        stemmer: english takes the inflected forms of BM25's words as one, which finds more; it needs PyStemmer.
        model: Directory of a Hugging Face encoder with mean pooling that makes the vectors.
        vectors: File of the vectors instead (.npy or .safetensors), one row a passage in the order of the corpus.
        similarity: cosine scales vectors to length 1; dot takes them as they are, as Contriever was trained.
        passage_length: Tokens that the encoder cuts passages to.
        batch_size: Passages encoded at once.
    """
    from ..retrieval import TextEncoder, build_index

    encoder = None if model is None else TextEncoder(model, passage_length)
    count = build_index(
        passages,
        out,
        kind,
        stemmer=stemmer,
        encoder=encoder,
        vectors=vectors,
        similarity=similarity,
        batch_size=batch_size,
    )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {kind} index of {count} passages, {size} bytes, texts included")
