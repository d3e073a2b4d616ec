"""The PyTorch operators `torch.ops.btr.*`: schemas, argument checks, fakes and gradients, a file per family."""

from . import bits, hamming, matmul, merging

__all__ = ["bits", "hamming", "matmul", "merging"]
