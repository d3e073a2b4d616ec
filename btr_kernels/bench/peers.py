"""The strongest other implementations at hand, each as a user who knows the library would call it.

They write into buffers that the case allocated wherever the library allows it, and work that can be done ahead
(unpacking the operands of a matmul, building an index, sorting tokens by slot) is done ahead, outside of the
measurement. Each uses the threads that torch is told to use; NumPy has one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import unpack_matmul
from .case import Inputs, Peer
from .machine import instruction_set

# --- packing and unpacking


def _packbits(mask: Tensor) -> Tensor:
    # One long row is faster than many short ones, and the same where d is a multiple of 8.
    return torch.from_numpy(np.packbits(mask.numpy().reshape(-1), bitorder="little")).view(len(mask), -1)


def _numpy_pack(i: Inputs) -> Tensor:
    np.greater_equal(i.x.numpy(), 0, out=i.mask.numpy())
    return _packbits(i.mask)


def _torch_pack(i: Inputs) -> Tensor:
    return _packbits(torch.ge(i.x, 0, out=i.mask))


def _integer_pack(i: Inputs) -> Tensor:
    """Sign bits of 16-bit floats, faster than any comparison of them; wrong for NaN and -0, which the inputs lack."""
    np.greater_equal(i.x.view(torch.int16).numpy(), 0, out=i.mask.numpy())
    return _packbits(i.mask)


numpy_pack = Peer(_numpy_pack)
torch_pack = Peer(_torch_pack)
integer_pack = Peer(_integer_pack)


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
    return i.out.mul_(i.scale_of_dtype)


def _take_unpack(i: Inputs) -> Tensor:
    """The same with NumPy, which needs no index of its own type; 16-bit floats are moved as integers."""
    table, out = i.signs_of_byte, i.out.view(-1, 8)
    if out.dtype != torch.float32:
        table, out = table.view(torch.int16), out.view(torch.int16)
    np.take(table.numpy(), i.bits.view(-1).numpy(), axis=0, out=out.numpy(), mode="clip")
    return i.out.mul_(i.scale_of_dtype)


def _copy_and_take(i: Inputs) -> tuple[Tensor, Tensor]:
    return i.copy.copy_(i.bits), _take_unpack(i)


copy_and_take = Peer(_copy_and_take)
numpy_unpack = Peer(_numpy_unpack)
table_unpack = Peer(_table_unpack)
take_unpack = Peer(_take_unpack)


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


# --- masked bits; the tables are unpacked ahead, one byte a channel


def _unpackbits(packed: Tensor) -> np.ndarray:
    return np.unpackbits(packed.numpy().reshape(-1), bitorder="little")


def _numpy_compress(i: Inputs) -> Tensor:
    """The channels of each id are listed ahead, so that nothing is left but to look them up."""
    np.take(i.channels.numpy(), i.ids.numpy(), axis=0, out=i.picked.numpy(), mode="clip")
    ones = _unpackbits(i.bits).reshape(len(i.ids), -1)
    return _packbits(torch.from_numpy(np.take_along_axis(ones, i.picked.numpy(), axis=1)))


def _numpy_compress_selected(i: Inputs) -> Tensor:
    np.take(i.selects.numpy(), i.ids.numpy(), axis=0, out=i.selected.numpy(), mode="clip")
    kept = _unpackbits(i.bits)[i.selected.numpy().reshape(-1)]
    return _packbits(torch.from_numpy(kept).view(len(i.ids), -1))


def _torch_compress(i: Inputs) -> Tensor:
    torch.index_select(i.channels, 0, i.ids, out=i.picked)
    ones = torch.from_numpy(_unpackbits(i.bits)).view(len(i.ids), -1)
    return _packbits(torch.gather(ones, 1, i.picked))


def _numpy_expand(i: Inputs) -> Tensor:
    ones, selected = i.ones.numpy(), i.selected.numpy()
    np.take(i.fills.numpy(), i.ids.numpy(), axis=0, out=ones, mode="clip")
    np.take(i.selects.numpy(), i.ids.numpy(), axis=0, out=selected, mode="clip")
    np.place(ones, selected, _unpackbits(i.codes))
    return _packbits(i.ones)


def _torch_expand(i: Inputs) -> Tensor:
    torch.index_select(i.fills, 0, i.ids, out=i.ones)
    torch.index_select(i.channels, 0, i.ids, out=i.picked)
    i.ones.scatter_(1, i.picked, torch.from_numpy(_unpackbits(i.codes)).view(len(i.ids), -1))
    return _packbits(i.ones)


numpy_compress = Peer(_numpy_compress)
numpy_compress_selected = Peer(_numpy_compress_selected)
torch_compress = Peer(_torch_compress)
numpy_expand = Peer(_numpy_expand)
torch_expand = Peer(_torch_expand)


# --- projection


def _if_float32(i: Inputs, product: Tensor) -> Tensor | None:
    """Rounding to 16 bits is left out."""
    return product if i.out.dtype == torch.float32 else None


def _unpacked_matmul(i: Inputs) -> Tensor | None:
    return _if_float32(i, torch.matmul(i.x, i.weight_float32.t(), out=i.out_float32))


def _numpy_matmul(i: Inputs) -> Tensor | None:
    """NumPy's OpenBLAS, which uses AVX-512 on CPUs where torch's MKL does not."""
    np.matmul(i.x.numpy(), i.weight_float32.numpy().T, out=i.out_float32.numpy())
    return _if_float32(i, i.out_float32)


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    """The linear layer that torch.compile makes of frozen weights on a CPU; it cannot write into a given output."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _onednn_matmul(i: Inputs) -> Tensor | None:
    """oneDNN, which uses AVX-512 on all CPUs, and all threads for a single token."""
    return _if_float32(i, _onednn(i.x, i.weight_float32))


def _no_onednn() -> str | None:
    return None if torch.backends.mkldnn.is_available() else "this build of PyTorch has no oneDNN"


def _bfloat16_matmul(i: Inputs) -> Tensor | None:
    """Weights and scale rounded to bfloat16."""
    product = torch.matmul(i.x_bfloat16, i.weight_bfloat16.t(), out=i.out_bfloat16)
    return product if i.out.dtype == torch.bfloat16 else None


def _no_bfloat16() -> str | None:
    # Without instructions for it a matmul in bfloat16 is tens of times slower than one in float32.
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return None if "avx512_bf16" in flags or " bf16" in flags else "this CPU has no instructions for bfloat16"


def _unpacked_geglu(i: Inputs) -> Tensor:
    """The projections one after the other, and GELU and product in place."""
    gate = torch.matmul(i.x, i.gate.t(), out=i.gate_out)
    linear = torch.matmul(i.x, i.linear.t(), out=i.linear_out)
    return torch.mul(torch.nn.functional.gelu(gate, approximate="tanh"), linear, out=i.out)


def _onednn_geglu(i: Inputs) -> Tensor:
    """The same through oneDNN; its own GELU and product, fused into the projections, take longer."""
    gate = torch.nn.functional.gelu(_onednn(i.x, i.gate), approximate="tanh")
    return torch.mul(gate, _onednn(i.x, i.linear), out=i.out)


def _separate_geglu(i: Inputs) -> Tensor:
    """Our own projections in two calls, with PyTorch for the rest."""
    gate = unpack_matmul(i.bits, i.gate_weight, out=i.gate_out)
    linear = unpack_matmul(i.bits, i.linear_weight, out=i.linear_out)
    return torch.mul(torch.nn.functional.gelu(gate, approximate="tanh"), linear, out=i.out)


def _around(i: Inputs, project) -> Tensor:
    """What stands around the projection of `token_linear` in a block, with as few operators as there are."""
    y = project(torch.nn.functional.rms_norm(i.x, i.norm.shape, i.norm, i.eps))
    if i.gated:
        gate, linear = y.chunk(2, -1)
        return torch.mul(torch.nn.functional.gelu(gate, approximate="tanh"), linear, out=i.out)
    return torch.add(y, i.residual, out=i.out)


def _matmul_in_block(i: Inputs) -> Tensor:
    return _around(i, lambda x: torch.matmul(x, i.weight.t(), out=i.products))


def _onednn_in_block(i: Inputs) -> Tensor:
    return _around(i, lambda x: _onednn(x, i.weight))


def _fused_attention(i: Inputs) -> Tensor:
    query, keys, values = (x.unflatten(-1, (-1, i.head_size)).transpose(1, 2) for x in (i.query, i.keys, i.values))
    mixed = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=i.bias, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)


unpacked_matmul = Peer(_unpacked_matmul)
numpy_matmul = Peer(_numpy_matmul)
onednn_matmul = Peer(_onednn_matmul, unsuited=_no_onednn)
bfloat16_matmul = Peer(_bfloat16_matmul, unsuited=_no_bfloat16)
unpacked_geglu = Peer(_unpacked_geglu)
onednn_geglu = Peer(_onednn_geglu, unsuited=_no_onednn)
separate_geglu = Peer(_separate_geglu)
matmul_in_block = Peer(_matmul_in_block)
fused_attention = Peer(_fused_attention)
onednn_in_block = Peer(_onednn_in_block, unsuited=_no_onednn)


# --- Hamming distances and matching


def _faiss_hammings(i: Inputs) -> Tensor:
    import faiss

    (m, w), n = i.a.shape, i.b.shape[0]
    a, b, out = (faiss.swig_ptr(t.numpy()) for t in (i.a, i.b, i.out))
    faiss.hammings(a, b, m, n, w, out)
    return i.out


def _numkong_distances(i: Inputs) -> Tensor:
    """numkong has no threads of its own: ranges of rows, from as many Python threads as torch would use."""
    import numkong

    a, m, threads = i.a.numpy(), i.a.shape[0], torch.get_num_threads()
    if threads == 1:
        numkong.hammings_packed(a, i.packed_b, out=i.numkong_out)
    else:
        bounds = [m * k // threads for k in range(threads + 1)]

        def part(begin: int, end: int) -> None:
            numkong.hammings_packed(a, i.packed_b, out=i.numkong_out, start_row=begin, end_row=end)

        list(_executor(threads).map(part, bounds[:-1], bounds[1:]))
    return torch.from_numpy(np.asarray(i.numkong_out).view(np.int32))


@lru_cache
def _executor(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _numkong_search(i: Inputs) -> Tensor:
    """Distances only are compared: torch orders ties differently."""
    torch.topk(_numkong_distances(i), i.k, largest=False, out=(i.values, i.indices))
    return i.values


def numkong_buffers(b: Tensor, m: int) -> dict[str, object]:
    """What the peers of numkong need beside the codes: b in numkong's layout, and an output."""
    if find_spec("numkong") is None:
        return {}
    import numkong

    if instruction_set() == "avx2":  # it has no variable that holds it to a set, so it follows ours
        for name in ("skylake", "icelake", "genoa", "turin", "sapphire"):
            numkong.disable_capability(name)
    return {
        "packed_b": numkong.hammings_pack(b.numpy(), dtype="uint1"),
        "numkong_out": numkong.zeros((m, b.shape[0]), dtype="uint32"),
    }


def _unpacked_mm(i: Inputs) -> None:
    """Only the products; the distances (d - product) / 2 are left out."""
    torch.mm(i.signs_a, i.signs_b.t(), out=i.products)


faiss_hammings = Peer(_faiss_hammings, module="faiss", package="faiss-cpu")
numkong_hammings = Peer(_numkong_distances, module="numkong")
numkong_search = Peer(_numkong_search, module="numkong")
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


def _sums(i: Inputs, x: Tensor) -> Tensor:
    return i.sums.zero_().index_add_(0, i.row, x)


def _bag(i: Inputs, x: Tensor, mode: str) -> Tensor:
    return torch.nn.functional.embedding_bag(i.order, x, i.start, mode=mode)


def _index_add_signs(i: Inputs) -> None:
    """Only the votes; turning them into packed bits is left out."""
    _sums(i, i.x)


def _bag_of_signs(i: Inputs) -> None:
    """Only the votes, of tokens that are sorted by slot ahead."""
    _bag(i, i.x, "sum")


def _index_add_mean(i: Inputs) -> Tensor:
    return _sums(i, i.x.flatten(0, 1)).div_(i.sizes).view(i.x.shape[0], -1, i.x.shape[-1])


def _bag_of_means(i: Inputs) -> Tensor:
    return _bag(i, i.x.flatten(0, 1), "mean").view(i.x.shape[0], -1, i.x.shape[-1])


index_add_signs = Peer(_index_add_signs)
bag_of_signs = Peer(_bag_of_signs)
index_add_mean = Peer(_index_add_mean)
bag_of_means = Peer(_bag_of_means)
