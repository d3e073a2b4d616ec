"""Training of readers: teacher, DeFormer and BTR students (BTR, arXiv 2310.01329).

settings: what a run does; examples: questions as batches; signs, forward: the forms of a reader with gradients; losses:
the objectives; loop, checkpoints: the run itself; facts: a generated task that small readers learn in minutes.
"""

from .examples import Example, read_examples
from .loop import BEST, Trainer, evaluate
from .settings import Objectives, Surrogate, TrainingSettings

__all__ = ["BEST", "Example", "Objectives", "Surrogate", "Trainer", "TrainingSettings", "evaluate", "read_examples"]
