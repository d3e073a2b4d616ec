"""The PyTorch operators `torch.ops.btr.*`: schemas, argument checks, fakes and gradients, a file per family."""

from . import attention, bits, hamming, matmul, merging

__all__ = ["attention", "bits", "hamming", "matmul", "merging"]
