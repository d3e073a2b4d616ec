"""`btr store`: what is in a store, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from ..store import StoreSettings


def info(store: Positional[Path], /, json: Path | None = None) -> None:
    """Shows what is in a store and how many bytes a token takes, by component.

    Args:
        store: The store directory.
        json: File to write the sizes to.
    """
    from ..store import Store, store_report

    # Opening checks that all files are there with their sizes.
    manifest = Store(store).manifest
    settings = manifest.settings
    report = store_report(store)
    first = ", equal ids first" if settings.same_id_first else ""
    rows = {
        "store": str(store),
        "state": "complete" if manifest.complete else "incomplete: run the same btr encode again to continue",
        "kind": settings.kind,
        "channels": f"{settings.channels}",
        "cut": f"{settings.cut.cut_point} of encoder layer {settings.cut.cut_layer}",
        "shards": f"{len(manifest.shards)} of up to {settings.shard_passages} passages",
        "passages": f"{report['passages']} (cut to {settings.passage_length} tokens)",
        **_bits(settings),
        "tokens": f"{report['original_tokens']} read, {report['tokens']} kept (share: {settings.keep}{first})",
        "reader": settings.reader,
        "corpus": ", ".join(corpus.sha256 for corpus in manifest.corpora),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    if report["original_tokens"]:
        print(_size_table(report))
    if json is not None:
        from json import dumps

        json.write_text(dumps(report, indent=2) + "\n")


def _bits(settings: StoreSettings) -> dict[str, str]:
    if settings.masked_bits:
        return {"bits": f"{settings.masked_bits} of {settings.channels} stored, which ones by token id"}
    if settings.codebook_bytes:
        return {"bits": f"codebook of vectors by token id, made for {settings.codebook_bytes} bytes per token read"}
    return {}


def _size_table(report: dict[str, Any]) -> str:
    lines = ["", f"{'':<18}{'bytes':>16}{'per token read':>18}"]
    for name, size in report["bytes"].items():
        if not size:
            continue
        lines.append(f"{name:<18}{size:>16,}{report['bytes_per_token'][name]:>18.2f}")
    for kind in ("float32", "float16"):
        floats = report[kind]
        lines.append(f"DeFormer's {kind} states take {floats['bytes_per_token']} a token: {floats['ratio']:.1f}x")
    return "\n".join(lines)


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
    opened.verify_side_files()
    state = "complete" if opened.manifest.complete else "incomplete, but whole so far"
    print(f"{store}: {len(opened)} passages in {len(opened.manifest.shards)} shards are intact ({state})")
