"""The executable definition of every operator, in plain PyTorch, on any device.

Every backend must agree with this package: to the bit for bits and integers, within twice PyTorch's own
rounding error for floats. It is also the PyTorch baseline that `btr_kernels.bench` measures against, so it is
written the way a careful PyTorch user would write it, not in the slowest obvious way.

Functions take the operator's schema arguments (see `btr_kernels.ops`) and return its results.
"""

from .attention import token_attention
from .bits import (
    as_rows,
    binarize,
    compress_bits,
    counts,
    expand_bits,
    normalise,
    pack_bits,
    restore_bits,
    sign_scale,
    sign_scale_backward,
    signs,
    unpack_bits,
)
from .hamming import hamming_distance, hamming_topk
from .matmul import (
    geglu,
    token_linear,
    unpack_geglu,
    unpack_geglu_prepared,
    unpack_matmul,
    unpack_matmul_backward,
    unpack_matmul_prepared,
)
from .merging import match_tokens, merge_bits, merge_tokens, merge_tokens_backward

__all__ = [
    "as_rows",
    "binarize",
    "compress_bits",
    "counts",
    "expand_bits",
    "geglu",
    "hamming_distance",
    "hamming_topk",
    "match_tokens",
    "merge_bits",
    "merge_tokens",
    "merge_tokens_backward",
    "normalise",
    "pack_bits",
    "restore_bits",
    "sign_scale",
    "sign_scale_backward",
    "signs",
    "token_attention",
    "token_linear",
    "unpack_bits",
    "unpack_geglu",
    "unpack_geglu_prepared",
    "unpack_matmul",
    "unpack_matmul_backward",
    "unpack_matmul_prepared",
]
