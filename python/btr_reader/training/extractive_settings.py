"""What a training run of an extractive reader does."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import RunSettings


@dataclass(frozen=True)
class ExtractiveSettings(RunSettings):
    """Everything that determines a run of an extractive reader besides reader and data. Lengths are in tokens."""

    answer_length: int = 30
    """Tokens that an answer can have."""
    frozen_layers: int = 0
    """Lowest layers that are not trained, nor are the embeddings then; 0 trains everything."""
    remember_teacher: bool = False
    """Keep what the teacher gives for a question in memory, rounded to bfloat16, instead of asking it every epoch: of
    100 tokens 40 KB a joint layer of 384 channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("answer_length", 1), ("frozen_layers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
