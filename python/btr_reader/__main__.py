"""Where the command `btr` (or `python -m btr_reader`) starts: says what to install where something is missing."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs `btr_reader.cli.main`, which needs the optional dependencies `reader`."""
    try:
        from .cli import main as run

        return run()
    except ModuleNotFoundError as missing:
        print(f"btr: {missing.name} is not installed: run pip install 'btr-kernels[reader]'", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
