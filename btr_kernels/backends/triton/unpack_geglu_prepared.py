"""Both projections of a gated feed-forward and the product of the two, for a prepared weight."""

from functools import partial

from .unpack_matmul_prepared import unpack_matmul_prepared

unpack_geglu_prepared = partial(unpack_matmul_prepared, gated=True)
