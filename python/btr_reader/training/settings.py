"""What a training run does: settings that are stored with its checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from ..shares import Compression

Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Surrogate:
    """What stands for the derivative of the sign (see `btr_kernels.sign_scale`)."""

    kind: Literal["ste", "tanh"] = "ste"
    """ste: 1 where the normalised state is within the clamp; tanh: that of tanh(beta * x), beta rising in training."""
    clamp: float = 2.0
    """Largest absolute normalised state that has a gradient (ste)."""
    beta_start: float = 1.0
    """beta at the start (tanh)."""
    beta_end: float = 10.0
    """beta at the end (tanh)."""

    def __post_init__(self) -> None:
        if self.kind not in ("ste", "tanh"):
            raise ValueError(f"kind must be ste or tanh, got {self.kind!r}")
        for name in ("clamp", "beta_start", "beta_end"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def at(self, progress: float) -> dict:
        """Arguments of `sign_scale` at a share of the training that is done, 0 to 1."""
        if self.kind == "ste":
            return {"grad": "ste", "clamp": self.clamp}
        # Geometric: the sign is approached evenly on the scale that its width is seen on.
        return {"grad": ("tanh", self.beta_start * (self.beta_end / self.beta_start) ** progress)}


@dataclass(frozen=True)
class Objectives:
    """Weights of the terms of the loss; 0 leaves a term out."""

    answers: float = 1.0
    """Cross-entropy of the answers."""
    recovery: float = 0.2
    """Relative squared error of restored tokens to the floats they replace (BTR only)."""
    distillation: float = 1.0
    """Relative squared error to the teacher's states of tokens that its query attends to most (needs a teacher)."""
    divergence: float = 0.5
    """KL divergence from the teacher's output distribution (needs a teacher)."""
    top_tokens: float = 0.5
    """Share of a passage's tokens that the distillation counts."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{entry.name} must be 0 or more, got {value}")
        if not 0 < self.top_tokens <= 1:
            raise ValueError(f"top_tokens must be in (0, 1], got {self.top_tokens}")
        if not (self.answers or self.recovery or self.need_teacher):
            raise ValueError("objectives: at least one weight must be above 0: there is nothing to train for")

    @property
    def of_outputs(self) -> bool:
        """Whether anything is asked of the outputs, and not of states alone."""
        return self.answers > 0 or self.divergence > 0

    @property
    def need_teacher(self) -> bool:
        return self.distillation > 0 or self.divergence > 0


@dataclass(frozen=True)
class RunSettings:
    """What determines a run of any reader besides reader and data. Lengths are in tokens."""

    steps: int = 1000
    """Optimizer steps, at most."""
    batch_size: int = 8
    """Questions in a forward pass, on each device."""
    accumulate: int = 1
    """Forward passes to an optimizer step."""
    passages: int = 10
    """Passages read per question, at most."""
    passage_length: int = 128
    """Tokens a passage is cut to."""
    learning_rate: float = 1e-4
    """Its highest value."""
    schedule: Schedule = "linear"
    """How the learning rate falls after warming up."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    evaluate_every: int = 200
    """Optimizer steps between evaluations on the dev set."""
    patience: int = 5
    """Evaluations without a better score before training stops."""
    checkpoint_every: int = 200
    """Optimizer steps between checkpoints: what a kill loses at most."""
    precision: Precision = "float32"
    """Of the forward pass; weights are float32."""
    seed: int = 0
    """Of the order of the questions."""
    objectives: Objectives = field(default_factory=Objectives)
    surrogate: Surrogate = field(default_factory=Surrogate)
    compression: Compression = field(default_factory=Compression)
    same_id_first: bool = False
    """Merge tokens with equal vocabulary ids first, as --same-id-first of the reader's encode command (BTR only)."""
    masked_bits: int = 0
    """Bits stored of each token, 0 for all (BTR only): the student learns to live with the others' being guessed."""
    centroids: bool = False
    """Bits are signs of what a token's vocabulary id and place do not foretell, not of the state itself (BTR only)."""
    calibrate: bool = True
    """Bits are restored with trained scales; --no-calibrate restores plain ±1, an ablation."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "passages", "evaluate_every", "patience", "checkpoint_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self._check_lengths("passage_length")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be in 0..1, got {self.warmup}")
        for name, known in (("schedule", Schedule), ("precision", Precision)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.same_id_first and self.compression.offline == 1:
            raise ValueError("same_id_first: there is nothing to merge while offline is 1")
        if self.masked_bits < 0:
            raise ValueError(f"masked_bits must be 0 or more, got {self.masked_bits}")
        if self.centroids and not self.calibrate:
            raise ValueError("centroids: they need calibrate: what they leave has a scale of its own")

    def _check_lengths(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back: tuples are lists."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def completed(cls, record: dict[str, Any]) -> dict[str, Any]:
        """A record of settings with those that it is too old to have: a new setting's default changes nothing."""
        return _completed(cls().to_dict(), record)


@dataclass(frozen=True)
class TrainingSettings(RunSettings):
    """Everything that determines a run of a T5 reader besides reader and data. Lengths are in tokens."""

    target_length: int = 32
    """Tokens an answer is cut to, sentinel and end token included."""
    statistics_passages: int = 4096
    """Passages of the training questions that masked bits are chosen by, at the start and before every evaluation; the
    best reader keeps its own. Centroids are measured on them, and bits chosen beside them, at the start alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_lengths("target_length")
        if self.statistics_passages < 1:
            raise ValueError(f"statistics_passages must be at least 1, got {self.statistics_passages}")


def _completed(defaults: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    both = {name: (defaults[name], record[name]) for name in defaults.keys() & record.keys()}
    parts = {name: _completed(*pair) for name, pair in both.items() if all(isinstance(part, dict) for part in pair)}
    return {**defaults, **record, **parts}
