"""Kernels for binary token representations: packing, restoring, projecting, comparing and merging 1-bit tokens.

Bit order: channel c lies in byte c // 8, bit c % 8 counted from the least significant; a bit is 1 iff x >= 0.
The hops of a call: public function (`bits`, `matmul`, `attention`, `hamming`, `merging`) -> operator `torch.ops.btr.*`
with its checks, fake and gradient (`ops`) -> backend (`backends`) -> kernel (`csrc` or `backends/triton`). The meaning
of every operator is defined in `reference`.
"""

from . import ops as _ops  # noqa: F401  registers torch.ops.btr
from .attention import token_attention
from .backends import BackendStatus, backends, current_backend, use_backend
from .bits import (
    binarize,
    calibrate_scale,
    compress_bits,
    expand_bits,
    pack_bits,
    restore_bits,
    sign_scale,
    unpack_bits,
)
from .hamming import Neighbours, hamming_distance, hamming_topk
from .matmul import PreparedWeight, prepare_weight, token_linear, unpack_geglu, unpack_matmul
from .merging import MergePlan, match_tokens, merge_bits, merge_tokens
from .version import __version__

__all__ = [
    "BackendStatus",
    "MergePlan",
    "Neighbours",
    "PreparedWeight",
    "__version__",
    "backends",
    "binarize",
    "calibrate_scale",
    "compress_bits",
    "current_backend",
    "expand_bits",
    "hamming_distance",
    "hamming_topk",
    "match_tokens",
    "merge_bits",
    "merge_tokens",
    "pack_bits",
    "prepare_weight",
    "restore_bits",
    "sign_scale",
    "token_attention",
    "token_linear",
    "unpack_bits",
    "unpack_geglu",
    "unpack_matmul",
    "use_backend",
]
