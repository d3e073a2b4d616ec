"""`btr compare-storage`: bytes against fidelity, for every way to compress a store."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def compare_storage(
    passages: Positional[Path],
    /,
    reader: Path,
    ratios: tuple[float, ...] = (48, 64, 80, 101, 128),
    max_passages: int | None = None,
    passage_length: int = 200,
    sample: int = 64,
    original_ids: Literal["keep", "drop"] = "keep",
    json: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Compresses a corpus in every way that btr encode knows and shows what each costs: bytes per token, bits that come
    back flipped, and how far the encoder's final states move.

    The stores are made in a temporary directory, of about the float32 size over each of the ratios. Masked bits are
    chosen by the reader's statistics (btr calibrate), or by those of the corpus itself where the reader has none.

    Args:
        passages: Corpus in Atlas' format.
        reader: Reader directory, calibrated.
        ratios: To the float32 states of a DeFormer store.
        max_passages: Passages read, from the start of the corpus; all unless told.
        passage_length: Tokens that a passage is cut to, end token included.
        sample: Passages, spread over the corpus, whose final states are compared.
        original_ids: Whether the stores keep the ids of all tokens read.
        json: File to write the report to.
        plot: File to draw it into (.png, .svg, .pdf).
    """
    import itertools

    from ..passages import read_passages
    from ..reader import load_reader
    from ..storage_comparison import compare_storage as compare
    from ..storage_report import format_markdown, save_plot
    from ..token_statistics import load_token_statistics

    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"plot must end in .png, .svg or .pdf, got {plot}")
    for file in (json, plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{file}: its directory does not exist")
    if max_passages is not None and max_passages < 1:
        raise ValueError(f"max_passages must be at least 1, got {max_passages}")
    loaded = load_reader(reader)
    report = compare(
        loaded,
        list(itertools.islice(read_passages(passages), max_passages)),
        load_token_statistics(reader, loaded),
        ratios=ratios,
        passage_length=passage_length,
        sample=sample,
        original_ids=original_ids == "keep",
    )
    print(format_markdown(report))
    if json is not None:
        from json import dumps

        json.write_text(dumps(report, indent=2) + "\n")
    if plot is not None:
        save_plot(report, plot)
