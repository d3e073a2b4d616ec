"""Both projections of a gated feed-forward and the product of the two, for a weight as it is."""

from functools import partial

from .unpack_matmul import unpack_matmul

unpack_geglu = partial(unpack_matmul, gated=True)
