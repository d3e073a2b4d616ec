"""Reader shapes, and the settings that make a T5 a BTR reader."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from transformers import T5Config

CutPoint = Literal["attention_output", "layer_output"]
ShapeName = Literal["tiny", "small", "base", "large", "xl", "xxl"]
# The width of T5's output head, whatever the tokenizer's size.
VOCABULARY = 32128


@dataclass(frozen=True)
class Shape:
    """The sizes of a T5 v1.1 encoder-decoder and its default cut layer."""

    d_model: int
    d_ff: int
    heads: int
    head_size: int
    layers: int
    cut_layer: int
    vocabulary: int = VOCABULARY


SHAPES: dict[str, Shape] = {
    # For tests and smoke runs; the others are the released T5 v1.1 shapes.
    "tiny": Shape(64, 128, 4, 16, layers=4, cut_layer=2, vocabulary=4096),
    "small": Shape(512, 1024, 6, 64, layers=8, cut_layer=6),
    "base": Shape(768, 2048, 12, 64, layers=12, cut_layer=9),
    "large": Shape(1024, 2816, 16, 64, layers=24, cut_layer=20),
    "xl": Shape(2048, 5120, 32, 64, layers=24, cut_layer=20),
    "xxl": Shape(4096, 10240, 64, 64, layers=24, cut_layer=20),
}


def default_cut_layer(layers: int) -> int:
    """The paper's cut for its encoder depths (9 of 12, 20 of 24), three quarters of any other depth."""
    return {12: 9, 24: 20}.get(layers, max(1, layers * 3 // 4))


@dataclass(frozen=True)
class ReaderSettings:
    """Where the encoder is cut in two.

    `cut_layer` (k): encoder layers 1..k read a passage offline and alone, k+1..L run at question time on
    [query; passage]; k = 0 leaves only the embeddings offline. `cut_point`: the state that is kept is the one after the
    attention sub-layer of layer k (`attention_output`, as in BTR) or after the whole layer (`layer_output`).
    """

    cut_layer: int
    cut_point: CutPoint = "attention_output"

    def __post_init__(self) -> None:
        if isinstance(self.cut_layer, bool) or not isinstance(self.cut_layer, int) or self.cut_layer < 0:
            raise ValueError(f"cut_layer must be an integer of at least 0, got {self.cut_layer!r}")
        if self.cut_point not in get_args(CutPoint):
            raise ValueError(f"cut_point must be one of {', '.join(get_args(CutPoint))}, got {self.cut_point!r}")
        if self.cut_layer == 0 and self.cut_point == "attention_output":
            raise ValueError("cut_point attention_output needs a cut_layer of at least 1: layer 0 has no attention")

    def check_depth(self, layers: int) -> None:
        """Raises `ValueError` unless at least one of the encoder's `layers` is left to run jointly."""
        if self.cut_layer >= layers:
            raise ValueError(f"cut_layer must be below the {layers} encoder layers, got {self.cut_layer}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Any, where: str) -> ReaderSettings:
        if not isinstance(record, dict) or set(record) != {"cut_layer", "cut_point"}:
            raise ValueError(f"{where}: expected an object with cut_layer and cut_point, got {record!r}")
        try:
            return cls(**record)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def t5_config(shape: Shape | str) -> T5Config:
    """The `transformers` configuration of a T5 v1.1 reader: gated GELU, RMSNorm, untied output head.

    `shape` is a `Shape` or the name of a preset. Raises `ValueError` for an unknown name.
    """
    from transformers import T5Config

    if isinstance(shape, str):
        if shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
        shape = SHAPES[shape]
    return T5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.d_model,
        d_kv=shape.head_size,
        d_ff=shape.d_ff,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
