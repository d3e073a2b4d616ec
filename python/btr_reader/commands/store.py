"""`btr store`: what is in a store, and whether it is whole."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def info(store: Positional[Path], /) -> None:
    """Shows what is in a store and how many bytes a token takes.

    Args:
        store: The store directory.
    """
    from ..store import load_manifest

    manifest = load_manifest(store)
    settings = manifest.settings
    total_bytes = manifest.total("bytes")
    tokens, originals = manifest.total("tokens"), manifest.total("original_tokens")
    float_bytes = 4 * settings.channels
    rows = {
        "store": str(store),
        "state": "complete" if manifest.complete else "incomplete: run the same btr encode again to continue",
        "kind": settings.kind,
        "channels": f"{settings.channels}",
        "cut": f"{settings.cut.cut_point} of encoder layer {settings.cut.cut_layer}",
        "shards": f"{len(manifest.shards)} of up to {settings.shard_passages} passages",
        "passages": f"{manifest.total('passages')} (cut to {settings.passage_length} tokens)",
        "tokens": f"{originals} read, {tokens} kept (share kept per passage: {settings.keep})",
        "bytes": f"{total_bytes}",
        "reader": settings.reader,
        "corpus": settings.corpus,
    }
    if originals:
        per_token = total_bytes / originals
        rows["bytes per token read"] = (
            f"{per_token:.1f}, ids and offsets included; float32 states: {float_bytes} ({float_bytes / per_token:.1f}x)"
        )
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def verify(store: Positional[Path], /) -> None:
    """Checks every checksum, size and offset of a store.

    Args:
        store: The store directory.
    """
    from tqdm import tqdm

    from ..store import Store

    opened = Store(store)
    for number in tqdm(range(len(opened.manifest.shards)), desc="verify", unit=" shards"):
        opened.verify(number)
    opened.passage_ids()
    state = "complete" if opened.manifest.complete else "incomplete, but whole so far"
    print(f"{store}: {len(opened)} passages in {len(opened.manifest.shards)} shards are intact ({state})")
