"""`btr calibrate`: measures the scale that binary tokens are restored with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from ..reader import Reader


def calibrate(
    passages: Positional[Path], /, reader: Path, max_passages: int | None = None, passage_length: int = 200
) -> None:
    """Measures the mean magnitude of every channel at the reader's cut and keeps it in the reader directory.

    Args:
        passages: Corpus in Atlas' format to measure on.
        reader: Reader directory; its scale is replaced.
        max_passages: Passages read, from the start of the corpus; 256 unless told.
        passage_length: Tokens that a passage is cut to, end token included.
    """
    from ..reader import load_reader

    calibrate_directory(load_reader(reader), reader, passages, passage_length, max_passages)


def calibrate_directory(
    reader: Reader, directory: Path, passages: Path, passage_length: int, max_passages: int | None = None
) -> None:
    """Calibrates a loaded reader and writes the scale into its directory."""
    import itertools

    from tqdm import tqdm

    from ..encoding import CALIBRATION_PASSAGES, calibrate_residual_scale
    from ..passages import read_passages
    from ..reader import save_residual_scale

    count = CALIBRATION_PASSAGES if max_passages is None else max_passages
    if count < 1:
        raise ValueError(f"max_passages must be at least 1, got {count}")
    chosen = itertools.islice(read_passages(passages), count)
    scale = calibrate_residual_scale(reader, tqdm(chosen, desc="calibrate", unit=" passages"), passage_length)
    save_residual_scale(directory, reader.settings, scale)
    print(f"{directory}: calibrated on {passages}; mean magnitude {scale.mean():.4g}")
