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
    masked_bits: int = 0,
    codebook_bytes: float = 0,
    original_ids: Literal["keep", "drop"] = "keep",
    passage_length: int | None = None,
    shard_passages: int = 1024,
    batch_size: int = 32,
    append: bool = False,
    memory_gib: float = 2.0,
    device: str = "cpu",
) -> None:
    """Encodes a corpus into a store of packed binary tokens.

    Interrupted, it leaves a usable store; the same command continues it. A reader that was never calibrated is
    calibrated first, on the start of the corpus.

    Args:
        passages: Corpus in Atlas' format: one JSON object a line with id, title, text and optionally section.
        reader: Reader directory.
        out: Store directory.
        kind: Bits (BTR), or the float states of a DeFormer reader.
        keep: Share of a passage's tokens kept; similar ones are merged.
        same_id_first: Merge tokens with equal vocabulary ids first, others only if that is not enough.
        masked_bits: Bits stored of each token; the others are filled in from the reader's tables, by vocabulary id. 0
            stores all. A reader that was trained with centroids stores as many as it was trained with.
        codebook_bytes: Bytes per token read that the whole store is to take, by sharing vectors among the tokens of a
            vocabulary id across the corpus. 0 shares none. Not together with masked bits: shared vectors are whole.
        original_ids: Keep the ids of all tokens read (2 bytes each): what the atlas form needs to read from the store,
            and a reader with centroids that stores all bits.
        passage_length: Tokens that a passage is cut to, end token included; 200 unless told, or all places that the
            reader's centroids are of, if it was trained with some: those of its training.
        shard_passages: Passages in a shard: what an interruption loses at most.
        batch_size: Passages encoded at once.
        append: Add the passages to a complete store of another corpus, made with the same options.
        memory_gib: Memory for making a codebook, besides what encoding takes.
        device: cpu, cuda, or cuda with a number.
    """
    from ..devices import parse_device
    from ..encoding import PassageEncoder, encode_corpus
    from ..reader import load_reader
    from ..store import MANIFEST_FILE
    from .calibrate import calibrate_scale, token_statistics

    if same_id_first and keep == 1:
        raise ValueError("--same-id-first says what is merged first, but nothing is: pass --keep below 1")
    loaded = load_reader(reader).to(parse_device(device))
    if passage_length is None:
        passage_length = 200 if loaded.code is None else len(loaded.code.places)
    encoder = PassageEncoder(
        loaded,
        kind,
        keep,
        passage_length,
        same_id_first=same_id_first,
        masked_bits=masked_bits,
        codebook_bytes=codebook_bytes,
        original_ids=original_ids == "keep",
    )
    if not 0 < memory_gib < float("inf"):
        raise ValueError(f"memory_gib must be positive, got {memory_gib}")
    tables = None
    chosen_here = masked_bits and encoder.reader.code is None
    if chosen_here and not (out / MANIFEST_FILE).is_file():  # a store that is there has its own
        tables = token_statistics(loaded, reader, passages, passage_length).tables(masked_bits)
    elif kind == "binary" and not loaded.calibrated:
        calibrate_scale(loaded, reader, passages, passage_length)
    added = encode_corpus(
        encoder,
        passages,
        out,
        shard_passages=shard_passages,
        batch_size=batch_size,
        append=append,
        tables=tables,
        memory_bytes=int(memory_gib * 2**30),
    )
    print(outcome(out, added))


def outcome(out: Path, added: int) -> str:
    """What there is in a store to which so many passages were added."""
    from ..store import store_report

    report = store_report(out)
    return (
        f"{out}: {added} passages added, {report['passages']} in all, {report['bytes']['total']} bytes, "
        f"{report['bytes_per_token']['total']:.1f} bytes per token"
    )
