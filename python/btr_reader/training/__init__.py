"""Training of readers: teacher, DeFormer and BTR students (BTR, arXiv 2310.01329).

settings: what a run does; examples: questions as batches; signs, forward: the forms of a reader with gradients; losses:
the objectives; loop, checkpoints: the run itself; facts: a generated task that small readers learn in minutes.
"""
