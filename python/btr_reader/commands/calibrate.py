"""`btr calibrate`: measures what binary tokens are restored with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from ..passages import Passage
    from ..reader import Reader
    from ..token_statistics import TokenStatistics

# Masked bits flip the fewer the more tokens were seen (benchmarks/notes/storage.md): 2 million are some minutes of a
# small encoder.
STATISTICS_PASSAGES = 16384


def calibrate(
    passages: Positional[Path],
    /,
    reader: Path,
    max_passages: int = STATISTICS_PASSAGES,
    passage_length: int = 200,
    device: str = "cpu",
) -> None:
    """Measures, at the reader's cut, the mean magnitude of every channel and how often each bit is set among the tokens
    of each vocabulary id, and keeps both in the reader directory: the scale of binary tokens, and the statistics that
    masked bits are chosen by.

    Args:
        passages: Corpus in Atlas' format to measure on.
        reader: Reader directory; what was measured before is replaced.
        max_passages: Passages read, from the start of the corpus.
        passage_length: Tokens that a passage is cut to, end token included.
        device: cpu, cuda, or cuda with a number.
    """
    from ..devices import parse_device
    from ..reader import load_reader, save_residual_scale
    from ..token_statistics import calibrate as measure

    if max_passages < 1:
        raise ValueError(f"max_passages must be at least 1, got {max_passages}")
    loaded = load_reader(reader).to(parse_device(device))
    if loaded.code is not None:
        raise ValueError(f"{reader}: was trained with centroids, and reads bits by what was measured then")
    scale, statistics = measure(loaded, _first(passages, max_passages), passage_length)
    save_residual_scale(reader, loaded.settings, scale)
    statistics.save(reader, loaded.settings)
    print(
        f"{reader}: calibrated on {passages}; mean magnitude {scale.mean():.4g}, "
        f"{int((statistics.tokens > 0).sum())} token ids seen in {int(statistics.tokens.sum())} tokens"
    )


def calibrate_scale(reader: Reader, directory: Path, passages: Path, passage_length: int) -> None:
    """Calibrates the scale alone, on fewer passages: enough for a reader whose stores mask no bits."""
    from ..encoding import CALIBRATION_PASSAGES, calibrate_residual_scale
    from ..reader import save_residual_scale

    scale = calibrate_residual_scale(reader, _first(passages, CALIBRATION_PASSAGES), passage_length)
    save_residual_scale(directory, reader.settings, scale)
    print(f"{directory}: calibrated on {passages}; mean magnitude {scale.mean():.4g}")


def token_statistics(reader: Reader, directory: Path, passages: Path, passage_length: int) -> TokenStatistics:
    """The statistics in a reader directory; a reader without them is calibrated first, and keeps the scale it has."""
    from ..reader import save_residual_scale
    from ..token_statistics import calibrate as measure
    from ..token_statistics import load_token_statistics

    statistics = load_token_statistics(directory, reader)
    if statistics is None:
        scale, statistics = measure(reader, _first(passages, STATISTICS_PASSAGES), passage_length)
        statistics.save(directory, reader.settings)
        if reader.residual_scale is None:
            save_residual_scale(directory, reader.settings, scale)
        print(f"{directory}: statistics of {int(statistics.tokens.sum())} tokens measured on {passages}")
    return statistics


def _first(passages: Path, count: int) -> Iterator[Passage]:
    import itertools

    from tqdm import tqdm

    from ..passages import read_passages

    return iter(tqdm(itertools.islice(read_passages(passages), count), desc="calibrate", unit=" passages"))
