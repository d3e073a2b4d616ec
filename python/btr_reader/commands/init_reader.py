"""`btr init-reader`: a reader with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def init_reader(
    out: Path,
    shape: Literal["tiny", "small", "base", "large", "xl", "xxl"] = "base",
    tokenizer: Path | None = None,
    text: Path | None = None,
    vocabulary_size: int = 8000,
    cut_layer: int | None = None,
    cut_point: Literal["attention_output", "layer_output"] = "attention_output",
    seed: int = 0,
) -> None:
    """Makes a reader directory with random weights: the start of training, and enough to measure speed.

    Args:
        out: Reader directory to write.
        shape: Sizes of T5 v1.1; tiny is for tests.
        tokenizer: Directory with a T5 tokenizer (tokenizer.json or spiece.model).
        text: Passages (JSON lines) to train a tokenizer on where none is given; Python's reference topics otherwise.
        vocabulary_size: Tokens of a tokenizer that is trained, at most.
        cut_layer: Encoder layers that run offline; 9 of base's 12 and 20 of large's 24 unless told.
        cut_point: State that is kept: after the attention of the cut layer, or after the whole layer.
        seed: Seed of the weights.
    """
    from ..reader import random_reader
    from ..settings import SHAPES, ReaderSettings, t5_config
    from ..tokenizer import ReaderTokenizer

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty")
    settings = ReaderSettings(SHAPES[shape].cut_layer if cut_layer is None else cut_layer, cut_point)
    reader = random_reader(
        t5_config(shape),
        settings,
        tokenizer=None if tokenizer is None else ReaderTokenizer.load(tokenizer),
        texts=[] if tokenizer is not None else _texts(text),
        vocabulary_size=vocabulary_size,
        seed=seed,
    )
    reader.save(out)
    print(f"{out}: {shape} reader, {reader.tokenizer.vocabulary_size} tokens, random weights (seed {seed})")


def _texts(passages: Path | None) -> list[str]:
    from ..corpus import topic_passages
    from ..passages import read_passages

    if passages is None:
        return [passage["text"] for passage in topic_passages()]
    return [f"{passage.title}\n{passage.text}" for passage in read_passages(passages)]
