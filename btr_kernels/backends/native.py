"""Loads the compiled parts of the package: the operators `torch.ops.btr_native.*` and the module `btr_kernels._C`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import torch


@cache
def load() -> tuple[ModuleType | None, str]:
    """The module `_C` once the native operators are registered, or None and why they are not there.

    Raises:
        ValueError: the environment variable BTR_ISA names an instruction set that does not run here.
    """
    library = Path(__file__).parent.parent / "libbtr_torch.so"
    if not library.exists():
        return None, f"the compiled library {library.name} is missing: install with `pip install .` (needs a C++ compiler)"
    try:
        from .. import _C

        torch.ops.load_library(library)
    except (ImportError, OSError) as error:
        return None, f"the compiled library does not load: {error}"
    _C.isa()
    return _C, ""
