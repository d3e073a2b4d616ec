"""What takes up the bytes of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .layout import shard_layout
from .manifest import MANIFEST_FILE, load_manifest

# In the order in which they are shown; `overhead` is the manifest and the headers and padding of the shards.
COMPONENTS = ("states", "index", "codebook", "slots", "token ids", "passage ids", "offsets", "overhead")


def store_report(directory: str | Path) -> dict[str, Any]:
    """The size of a store by component, read from its manifest alone.

    Returns `passages`, `tokens` (kept) and `original_tokens`; `bytes` of each component, in `total` without the tables
    of masked bits, which are the reader's and do not grow with the corpus, and with them (`total and tables`); and for
    a store that is not empty `bytes_per_token` of each, `float32` and `float16`: {"bytes_per_token", "ratio"} of the
    DeFormer store that would hold the same tokens' states as floats, all of them and nothing else, to `total`. Tokens
    are original ones.
    """
    directory = Path(directory)
    manifest = load_manifest(directory)
    settings = manifest.settings
    sizes = dict.fromkeys(COMPONENTS, 0)
    codebook = manifest.codebook
    for shard in manifest.shards:
        for tensor in shard_layout(settings, shard, codebook and codebook.index_bytes).values():
            sizes[tensor.component] += tensor.bytes
    if codebook is not None:
        sizes["codebook"] = sum(entry.bytes for entry in codebook.files)
    index = 0 if manifest.index is None else manifest.index.bytes
    sizes["passage ids"] += index
    total = manifest.total("bytes") + index + sizes["codebook"] + (directory / MANIFEST_FILE).stat().st_size
    sizes["overhead"] = total - sum(sizes.values())
    tokens = manifest.total("original_tokens")
    report: dict[str, Any] = {name: manifest.total(name) for name in ("passages", "tokens", "original_tokens")}
    report["bytes"] = {**sizes, "total": total}
    if manifest.tables is not None:
        report["bytes"] |= {"tables": manifest.tables.bytes, "total and tables": total + manifest.tables.bytes}
    if tokens:
        report["bytes_per_token"] = {name: size / tokens for name, size in report["bytes"].items()}
        for name, width in (("float32", 4), ("float16", 2)):
            floats = width * settings.channels
            report[name] = {"bytes_per_token": floats, "ratio": floats * tokens / total}
    return report
