"""Training of readers: teacher, DeFormer and BTR students (BTR, arXiv 2310.01329).

settings: what a run does; run, checkpoints: the run itself, whatever is trained; losses, signs: the objectives, and
bits with gradients. Of a T5 reader: examples: questions as batches; forward: its forms with gradients; loop: what it
makes of a run; facts: a generated task that small readers learn in minutes.
"""
