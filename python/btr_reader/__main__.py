"""Where the command `btr` (or `python -m btr_reader`) starts: says what to install where something is missing."""

from __future__ import annotations

import sys

#: Optional dependencies that only some commands need.
_EXTRAS = {"accelerate": "train", "faiss": "retrieval", "Stemmer": "retrieval"}


def main() -> int:
    """Runs `btr_reader.cli.main`, which needs the optional dependencies `reader`, some commands others."""
    try:
        from .cli import main as run

        return run()
    except ModuleNotFoundError as missing:
        extra = _EXTRAS.get(missing.name, "reader")
        print(f"btr: {missing.name} is not installed: run pip install 'btr-kernels[{extra}]'", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
