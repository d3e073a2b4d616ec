"""The strongest other implementations at hand, each as a user who knows the library would call it.

They write into buffers that the case allocated wherever the library allows it, and work that can be done ahead
(unpacking the operands of a matmul, building an index) is done ahead, outside of the measurement.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from .case import Inputs, Peer

# --- packing and unpacking


def _packbits(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy(), axis=-1, bitorder="little"))


def _numpy_pack(i: Inputs) -> Tensor:
    np.greater_equal(i.x.numpy(), 0, out=i.mask.numpy())
    return _packbits(i.mask)


def _torch_pack(i: Inputs) -> Tensor:
    return _packbits(torch.ge(i.x, 0, out=i.mask))


numpy_pack = Peer(_numpy_pack)
torch_pack = Peer(_torch_pack)


def _numpy_unpack(i: Inputs) -> Tensor:
    ones = np.unpackbits(i.bits.numpy(), axis=-1, bitorder="little")
    out = i.out.numpy()
    np.multiply(ones, i.twice_scale.numpy(), out=out)
    np.subtract(out, i.scale.numpy(), out=out)
    return i.out


def _table_unpack(i: Inputs) -> Tensor:
    """One gathered row of 8 signs a byte."""
    i.byte.copy_(i.bits.view(-1))
    torch.index_select(i.signs_of_byte, 0, i.byte, out=i.out.view(-1, 8))
    return i.out.mul_(i.scale)


numpy_unpack = Peer(_numpy_unpack)
table_unpack = Peer(_table_unpack)


# --- binarization


def _pack_with_rms(i: Inputs) -> tuple[Tensor, Tensor]:
    magnitude = torch.linalg.vector_norm(i.x, dim=-1).square_().div_(i.x.shape[-1]).add_(i.eps).sqrt_()
    return _torch_pack(i), magnitude


def _layer_norm_pack(i: Inputs) -> tuple[Tensor, Tensor]:
    _, mean, inverse = torch.native_layer_norm(i.x, [i.x.shape[-1]], None, None, i.eps)
    return _packbits(torch.ge(i.x, mean, out=i.mask)), inverse.reciprocal_().squeeze(-1)


pack_with_rms = Peer(_pack_with_rms)
layer_norm_pack = Peer(_layer_norm_pack)


def _copysign(i: Inputs) -> Tensor:
    return torch.copysign(i.scale, i.x, out=i.out)


def _eager_straight_through(i: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The textbook form, with the gradient left to autograd."""
    n = i.x * torch.rsqrt(i.x.square().mean(-1, keepdim=True) + i.eps)
    soft = n.clamp(-i.clamp, i.clamp)
    y = i.scale * (soft + (torch.where(n >= 0, 1.0, -1.0) - soft).detach())
    return y.detach(), *torch.autograd.grad(y, (i.x, i.scale), i.grad)


copysign = Peer(_copysign)
eager_straight_through = Peer(_eager_straight_through)


# --- projection


def _unpacked_matmul(i: Inputs) -> Tensor:
    return torch.matmul(i.x, i.weight.t(), out=i.out)


unpacked_matmul = Peer(_unpacked_matmul)


# --- Hamming distances and matching


def _faiss_hammings(i: Inputs) -> Tensor:
    import faiss

    (m, w), n = i.a.shape, i.b.shape[0]
    a, b, out = (faiss.swig_ptr(t.numpy()) for t in (i.a, i.b, i.out))
    faiss.hammings(a, b, m, n, w, out)
    return i.out


def _numkong_hammings(i: Inputs) -> Tensor:
    import numkong

    numkong.hammings_packed(i.a.numpy(), i.packed_b, out=i.numkong_out)
    return torch.from_numpy(np.asarray(i.numkong_out).view(np.int32))


def numkong_buffers(b: Tensor, m: int) -> dict[str, object]:
    """What `numkong_hammings` needs beside the codes: b in numkong's layout, and an output."""
    if find_spec("numkong") is None:
        return {}
    import numkong

    return {
        "packed_b": numkong.hammings_pack(b.numpy(), dtype="uint1"),
        "numkong_out": numkong.zeros((m, b.shape[0]), dtype="uint32"),
    }


def _unpacked_mm(i: Inputs) -> None:
    """Only the products; the distances (d - product) / 2 are left out."""
    torch.mm(i.signs_a, i.signs_b.t(), out=i.products)


faiss_hammings = Peer(_faiss_hammings, module="faiss", package="faiss-cpu")
numkong_hammings = Peer(_numkong_hammings, module="numkong")
unpacked_mm = Peer(_unpacked_mm)


def faiss_index(codes: Tensor) -> object | None:
    """The exhaustive binary index over packed codes, or None without faiss."""
    if find_spec("faiss") is None:
        return None
    import faiss

    index = faiss.IndexBinaryFlat(8 * codes.shape[-1])
    index.add(codes.numpy())
    return index


def _faiss_search(i: Inputs) -> Tensor:
    """Distances only are compared: faiss orders ties differently."""
    return torch.from_numpy(i.index.search(i.a.numpy(), i.k)[0])


faiss_search = Peer(_faiss_search, module="faiss", package="faiss-cpu")


def _bmm_and_max(i: Inputs) -> None:
    """Only the similarities and the best partner of each token; choosing the pairs and their slots is left out."""
    torch.bmm(i.even, i.odd.transpose(1, 2), out=i.scores)
    torch.max(i.scores, dim=-1, out=(i.best_score, i.best))


bmm_and_max = Peer(_bmm_and_max)


# --- merging


def _index_add_signs(i: Inputs) -> None:
    """Only the votes; turning them into packed bits is left out."""
    i.sums.zero_().index_add_(0, i.rows, i.signs)


def _index_add_mean(i: Inputs) -> Tensor:
    sums = i.sums.zero_().index_add_(0, i.rows, i.x.flatten(0, 1))
    return sums.div_(i.sizes).view(i.x.shape[0], -1, i.x.shape[-1])


index_add_signs = Peer(_index_add_signs)
index_add_mean = Peer(_index_add_mean)
