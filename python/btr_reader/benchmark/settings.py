"""What a run of the benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from ..settings import SHAPES, CutPoint, ShapeName
from ..shares import PRESETS, Compression, Preset, Similarity, preset_with

if TYPE_CHECKING:
    from ..engine import Form
    from ..linears import LinearPrecision

ReaderName = Literal["atlas", "deformer", "atlas-int8", "btr", "btr-int8", "btr-centroids", "btr-centroids-int8"]
Dtype = Literal["float32", "bfloat16", "float16"]


class ReaderKind(NamedTuple):
    """Form of a reader, the precision of its projections of floats, and whether a code restores its bits."""

    form: Form
    linears: LinearPrecision
    centroids: bool = False


READERS: dict[ReaderName, ReaderKind] = {
    "atlas": ReaderKind("atlas", "float"),
    "deformer": ReaderKind("deformer", "float"),
    "atlas-int8": ReaderKind("atlas", "int8"),
    "btr": ReaderKind("btr", "float"),
    "btr-int8": ReaderKind("btr", "int8"),
    "btr-centroids": ReaderKind("btr", "float", centroids=True),
    "btr-centroids-int8": ReaderKind("btr", "int8", centroids=True),
}
#: What is measured unless told.
DEFAULT_READERS: tuple[ReaderName, ...] = tuple(name for name, kind in READERS.items() if not kind.centroids)
#: The shares of a sweep over kept tokens, from all to few.
SWEEP = (
    Compression(),
    Compression(offline=0.85, joint=0.95, decoder=0.85),
    PRESETS["paper"],
    Compression(offline=0.6, joint=0.85, decoder=0.6),
    PRESETS["aggressive"],
    Compression(offline=0.35, joint=0.7, decoder=0.4),
)


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured. Lengths are in tokens; `new_tokens` are decoded exactly, without an early stop.

    readers: names in `READERS`; Atlas is always among them, since speed-ups are over it. On a GPU the int8 readers are
    left out: their linear layers are for CPUs. keep_offline, keep_joint, keep_decoder: shares that replace those of the
    preset. sweep: measure BTR at several shares of kept tokens as well.
    """

    shape: ShapeName = "base"
    passages: int = 10
    passage_length: int = 128
    query_length: int = 20
    new_tokens: int = 8
    preset: Preset = "aggressive"
    keep_offline: float | None = None
    keep_joint: float | None = None
    keep_decoder: float | None = None
    similarity: Similarity = "hamming"
    readers: tuple[ReaderName, ...] = DEFAULT_READERS
    cut_point: CutPoint = "attention_output"
    precision: str = "exact"
    device: str = "cpu"
    dtype: Dtype = "float32"
    sweep: bool = False
    repeats: int = 5
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("passages", 1),
            ("passage_length", 8),
            ("query_length", 2),
            ("new_tokens", 1),
            ("repeats", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        for name, known in (("shape", SHAPES), ("preset", PRESETS), ("dtype", get_args(Dtype))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        unknown = [name for name in self.readers if name not in READERS]
        if unknown or "atlas" not in self.readers:
            raise ValueError(f"readers must be atlas and any of {', '.join(READERS)}, got {', '.join(self.readers)}")
        from ..devices import parse_device

        device = parse_device(self.device)
        if device.type == "cpu" and self.dtype != "float32":
            raise ValueError(f"dtype must be float32 on a CPU, got {self.dtype}")
        _ = self.compression

    @property
    def compression(self) -> Compression:
        """The preset with the shares that were given by themselves."""
        shares = {"offline": self.keep_offline, "joint": self.keep_joint, "decoder": self.keep_decoder}
        return preset_with(self.preset, similarity=self.similarity, **shares)
