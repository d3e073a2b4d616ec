"""The on-disk store of encoded passages (format: `manifest`)."""

from .manifest import KINDS, Kind, Manifest, StoreSettings, load_manifest
from .shard import MAX_PASSAGE_LENGTH, EncodedPassage
from .store import Store
from .writer import StoreWriter

__all__ = [
    "KINDS",
    "MAX_PASSAGE_LENGTH",
    "EncodedPassage",
    "Kind",
    "Manifest",
    "Store",
    "StoreSettings",
    "StoreWriter",
    "load_manifest",
]
