"""The on-disk store of encoded passages (format: `manifest`, `layout`)."""

from .accounting import store_report
from .manifest import (
    KINDS,
    MANIFEST_FILE,
    MAX_ID_BYTES,
    MAX_PASSAGE_LENGTH,
    CodebookFiles,
    Kind,
    Manifest,
    StoreSettings,
    load_manifest,
)
from .shard import EncodedPassage
from .store import Store
from .tables import TokenTables
from .writer import StoreWriter

__all__ = [
    "KINDS",
    "MANIFEST_FILE",
    "MAX_ID_BYTES",
    "MAX_PASSAGE_LENGTH",
    "CodebookFiles",
    "EncodedPassage",
    "Kind",
    "Manifest",
    "Store",
    "StoreSettings",
    "StoreWriter",
    "TokenTables",
    "load_manifest",
    "store_report",
]
