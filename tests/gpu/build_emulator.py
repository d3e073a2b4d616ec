"""Worker: `python -m gpu.build_emulator LIBRARY SOURCE...` compiles CUDA sources for the CPU; prints {}."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .emulated import build

if __name__ == "__main__":
    library, *sources = map(Path, sys.argv[1:])
    try:
        build(sources, library)
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr)
    print("{}")
