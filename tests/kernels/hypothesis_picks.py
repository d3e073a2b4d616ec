"""Arguments from Hypothesis, with special values and strides.

A module of its own: machines where only kernels are checked need not have Hypothesis.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from .picks import FLOATS, SPECIAL, STRIDES, Picks, restride


class HypothesisPicks(Picks):
    """Arguments that Hypothesis draws and shrinks; bulk values come from a seed that it draws."""

    special = True

    def __init__(self, draw):
        super().__init__(draw(st.integers(0, 2**32 - 1), label="seed"))
        self.draw = draw

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def choice(self, options):
        return self.draw(st.sampled_from(options))

    def floats(self, shape, dtype=None, *, special=True):
        dtype = dtype or self.choice(FLOATS)
        values = torch.from_numpy(self.random.standard_normal(tuple(shape)))
        values *= self.choice((1.0, 1e-3, 1e3)) if special else 1.0
        if special and values.numel():
            where = st.integers(0, values.numel() - 1)
            for index, value in self.draw(st.lists(st.tuples(where, st.sampled_from(SPECIAL)), max_size=6)):
                values.view(-1)[index] = value
        return self.laid_out(values.to(dtype))

    def laid_out(self, tensor):
        return restride(tensor, self.choice(STRIDES))
