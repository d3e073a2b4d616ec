"""`btr encode`: a corpus into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def encode(
    passages: Positional[Path],
    /,
    reader: Path,
    out: Path,
    kind: Literal["binary", "float32", "float16"] = "binary",
    keep: float = 1.0,
    same_id_first: bool = False,
    original_ids: Literal["keep", "drop"] = "keep",
    passage_length: int = 200,
    shard_passages: int = 1024,
    batch_size: int = 32,
    append: bool = False,
) -> None:
    """Encodes a corpus into a store of packed binary tokens.

    Interrupted, it leaves a usable store; the same command continues it. A reader that was never calibrated is
    calibrated first, on the corpus.

    Args:
        passages: Corpus in Atlas' format: one JSON object a line with id, title, text and optionally section.
        reader: Reader directory.
        out: Store directory.
        kind: Bits (BTR), or the float states of a DeFormer reader.
        keep: Share of a passage's tokens kept; similar ones are merged.
        same_id_first: Merge tokens with equal vocabulary ids first, others only if that is not enough.
        original_ids: Keep the ids of all tokens read (2 bytes each): what the atlas form needs to read from the store.
        passage_length: Tokens that a passage is cut to, end token included.
        shard_passages: Passages in a shard: what an interruption loses at most.
        batch_size: Passages encoded at once.
        append: Add the passages to a complete store of another corpus, made with the same options.
    """
    from ..encoding import PassageEncoder, encode_corpus
    from ..reader import load_reader
    from ..store import store_report
    from .calibrate import calibrate_directory

    loaded = load_reader(reader)
    if kind == "binary" and loaded.residual_scale is None:
        calibrate_directory(loaded, reader, passages, passage_length)
    encoder = PassageEncoder(
        loaded, kind, keep, passage_length, same_id_first=same_id_first, original_ids=original_ids == "keep"
    )
    added = encode_corpus(encoder, passages, out, shard_passages=shard_passages, batch_size=batch_size, append=append)
    report = store_report(out)
    print(
        f"{out}: {added} passages added, {report['passages']} in all, {report['bytes']['total']} bytes, "
        f"{report['bytes_per_token']['total']:.1f} bytes per token"
    )
