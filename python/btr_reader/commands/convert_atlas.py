"""`btr convert-atlas`: an original Atlas checkpoint into a reader directory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional, UseAppendAction


def convert_atlas(
    checkpoint: Positional[Path],
    /,
    tokenizer: Path,
    out: Path,
    cut_layer: int | None = None,
    cut_point: Literal["attention_output", "layer_output"] = "attention_output",
    options_class: UseAppendAction[tuple[str, ...]] = (),
) -> None:
    """Converts an original Atlas checkpoint (a directory with model.pth.tar) into a reader directory.

    Args:
        checkpoint: Directory of the original checkpoint.
        tokenizer: Directory of its T5 tokenizer (tokenizer.json or spiece.model).
        out: Reader directory to write.
        cut_layer: Encoder layers that run offline; 9 of base's 12 and 20 of 24 unless told.
        cut_point: State that is kept: after the attention of the cut layer, or after the whole layer.
        options_class: Full name of a class in the checkpoint to read as plain attributes, without importing it.
    """
    from ..atlas_checkpoint import convert_atlas as convert
    from ..tokenizer import ReaderTokenizer

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty")
    reader = convert(checkpoint, ReaderTokenizer.load(tokenizer), cut_layer, cut_point, tuple(options_class))
    reader.save(out)
    config = reader.config
    print(f"{out}: {config.num_layers} layers of {config.d_model} channels, cut at layer {reader.settings.cut_layer}")
