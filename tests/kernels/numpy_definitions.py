"""What every operator computes, in plain loops over NumPy arrays, written from the public contract alone.

Nothing here comes from `btr_kernels.reference`, which is tested against this file. Arguments are those of the
operators with floats as float64 (which holds every supported dtype exactly) and bits as uint8; results are float64,
uint8 or int64, before any rounding to the operator's dtype.
"""

from __future__ import annotations

import math

import numpy as np


def _rows(array: np.ndarray, kept: int = 1) -> np.ndarray:
    """All leading dimensions in one: (..., a, b) -> (rows, a, b) for kept = 2."""
    count = math.prod(array.shape[: array.ndim - kept])
    return array.reshape(count, *array.shape[array.ndim - kept :])


def _bit(token: np.ndarray, channel: int) -> int:
    return (int(token[channel // 8]) >> (channel % 8)) & 1


def _signs(token: np.ndarray, d: int) -> np.ndarray:
    return np.array([1.0 if _bit(token, c) else -1.0 for c in range(d)])


def _pack(ones: list[bool]) -> list[int]:
    packed = [0] * ((len(ones) + 7) // 8)
    for channel, one in enumerate(ones):
        if one:
            packed[channel // 8] += 1 << (channel % 8)
    return packed


def pack_bits(x):
    packed = [_pack([bool(value >= 0) if x.dtype != bool else bool(value) for value in row]) for row in _rows(x)]
    w = (x.shape[-1] + 7) // 8
    return (np.array(packed, dtype=np.uint8).reshape(*x.shape[:-1], w),)


def unpack_bits(bits, d, scale, bias, token_scale, dtype=None):
    out = np.empty((*bits.shape[:-1], d))
    factors = None if token_scale is None else token_scale.reshape(-1)
    for row, (token, result) in enumerate(zip(_rows(bits), _rows(out), strict=True)):
        for c in range(d):
            value = 1.0 if _bit(token, c) else -1.0
            if scale is not None:
                value = value * scale[c]
            if factors is not None:
                value = value * factors[row]
            result[c] = value if bias is None else value + bias[c]
    return (out,)


def restore_bits(scale, bits, dtype=None):
    return bits, *unpack_bits(bits, len(scale), scale, None, None)


def _mean(values: np.ndarray) -> float:
    # fsum is exact, but refuses infinities of both signs and NaN, whose sum NumPy knows.
    return math.fsum(values) / len(values) if np.isfinite(values).all() else float(np.sum(values))


def _centred(row: np.ndarray, norm: str) -> np.ndarray:
    return row - _mean(row) if norm == "layer" else row


def _magnitude(row: np.ndarray, norm: str, eps: float) -> float:
    return math.sqrt(_mean(_centred(row, norm) ** 2) + eps)


def binarize(x, norm, eps, magnitude):
    bits, sizes = [], []
    for row in _rows(x):
        bits.append(_pack([bool(value >= 0) for value in _centred(row, norm)]))
        sizes.append(_magnitude(row, norm, eps))
    bits = np.array(bits, dtype=np.uint8).reshape(*x.shape[:-1], (x.shape[-1] + 7) // 8)
    return bits, np.array(sizes, dtype=np.float64).reshape(x.shape[:-1]) if magnitude else np.empty(0)


def undecided(x, norm):
    """Where "layer" leaves a backend free: abs(x - mean) <= 2**-20 * max abs(x)."""
    free = np.zeros(x.shape, dtype=bool)
    if norm == "layer":
        for row, result in zip(_rows(x), _rows(free), strict=True):
            result[:] = np.abs(_centred(row, norm)) <= 2.0**-20 * np.max(np.abs(row))
    return free


def sign_scale(x, scale, norm, eps, grad, limit):
    out = np.empty(x.shape)
    for row, result in zip(_rows(x), _rows(out), strict=True):
        for c, value in enumerate(_centred(row, norm)):
            result[c] = scale[c] if value >= 0 else -scale[c]
    return (out,)


def _slope(n: np.ndarray, grad: str, limit: float) -> np.ndarray:
    if grad == "ste":
        return np.where(np.abs(n) <= limit, 1.0, 0.0)
    return limit * (1.0 - np.tanh(limit * n) ** 2)


def sign_scale_backward(grad_out, x, scale, norm, eps, grad, limit):
    grad_x, grad_scale = np.empty(x.shape), np.zeros(scale.shape)
    for g, row, result in zip(_rows(grad_out), _rows(x), _rows(grad_x), strict=True):
        centred = _centred(row, norm)
        grad_scale += np.where(centred >= 0, g, -g)
        if norm == "none":
            result[:] = g * scale * _slope(row, grad, limit)
            continue
        size = _magnitude(row, norm, eps)
        n = centred / size
        h = g * scale * _slope(n, grad, limit)
        # dn_i/dx_j = (delta_ij - [1/d if layer] - n_i n_j / d) / size, with eps inside size.
        shared = np.mean(h) if norm == "layer" else 0.0
        along = np.mean(h * n)
        for j in range(len(row)):
            result[j] = (h[j] - shared - n[j] * along) / size
    return grad_x, grad_scale


def sign_scale_backward_terms(grad_out, x, scale, norm, eps, grad, limit):
    """The sum of the magnitudes of the terms of each gradient: what its rounding error is proportional to."""
    steepest = 1.0 if grad == "ste" else limit
    size_x, size_scale = np.empty(x.shape), np.zeros(scale.shape)
    for g, row, result in zip(_rows(grad_out), _rows(x), _rows(size_x), strict=True):
        size_scale += np.abs(g)
        h = np.abs(g * scale) * steepest
        if norm == "none":
            result[:] = h
            continue
        size = _magnitude(row, norm, eps)
        # n itself is known to about the ratio of the row's largest value to its deviation.
        n = (np.abs(_centred(row, norm)) + (np.max(np.abs(row)) if norm == "layer" else 0)) / size
        result[:] = (h + np.mean(h) + n * np.mean(h * n)) / size
    return size_x, size_scale


def _set_channels(mask: np.ndarray) -> list[int]:
    return [channel for channel in range(8 * len(mask)) if _bit(mask, channel)]


def compress_bits(bits, ids, mask, k):
    codes = []
    for token, row in zip(_rows(bits), ids.reshape(-1), strict=True):
        kept = [bool(_bit(token, channel)) for channel in _set_channels(mask[row])]
        assert len(kept) == k
        codes.append(_pack(kept))
    return (np.array(codes, dtype=np.uint8).reshape(*bits.shape[:-1], (k + 7) // 8),)


def expand_bits(codes, ids, mask, fill):
    out = np.empty((*codes.shape[:-1], mask.shape[-1]), dtype=np.uint8)
    for code, row, result in zip(_rows(codes), ids.reshape(-1), _rows(out), strict=True):
        ones = [bool(_bit(fill[row], channel)) for channel in range(8 * len(result))]
        for place, channel in enumerate(_set_channels(mask[row])):
            ones[channel] = place < 8 * len(code) and bool(_bit(code, place))
        result[:] = _pack(ones)
    return (out,)


def unpack_matmul(bits, weight, scale, bias, token_scale, out_dtype=None):
    out = np.empty((*bits.shape[:-1], weight.shape[0]))
    factors = None if token_scale is None else token_scale.reshape(-1)
    for row, (token, result) in enumerate(zip(_rows(bits), _rows(out), strict=True)):
        x = _signs(token, weight.shape[1])
        if scale is not None:
            x = x * scale
        for n in range(weight.shape[0]):
            value = np.sum(x * weight[n])
            if factors is not None:
                value = value * factors[row]
            result[n] = value if bias is None else value + bias[n]
    return (out,)


def unpack_matmul_backward(grad, bits, weight, scale, token_scale, for_weight, for_scale):
    product = np.zeros(weight.shape)
    factors = None if token_scale is None else token_scale.reshape(-1)
    for row, (g, token) in enumerate(zip(_rows(grad), _rows(bits), strict=True)):
        x = _signs(token, weight.shape[1])
        for n in range(weight.shape[0]):
            product[n] += x * (g[n] if factors is None else g[n] * factors[row])
    grad_weight = product if scale is None else product * scale
    return grad_weight if for_weight else np.empty(0), np.sum(product * weight, axis=0) if for_scale else np.empty(0)


def unpack_matmul_prepared(bits, data, factors, precision, bias, token_scale, out_dtype=None):
    if factors is None:
        return unpack_matmul(bits, data.T.astype(np.float64), None, bias, token_scale)
    block = len(data) if len(factors) == 1 else 64
    sums = 0
    for i, row in enumerate(factors.astype(np.float64)):
        # The other channels count nothing.
        part = np.zeros_like(data, dtype=np.float64)
        part[i * block : (i + 1) * block] = data[i * block : (i + 1) * block]
        sums = sums + unpack_matmul(bits, part.T, None, None, None)[0] * row
    if token_scale is not None:
        sums = sums * token_scale[..., None]
    return (sums if bias is None else sums + bias,)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gated(project):
    def product(*args):
        (y,) = project(*args)
        gate, linear = np.split(y, 2, -1)
        return (gelu(gate) * linear,)

    return product


def token_linear(x, weight, norm, eps, residual, gated_pair):
    y = np.empty((*x.shape[:-1], len(weight)))
    for row, result in zip(_rows(x), _rows(y), strict=True):
        if norm is not None:
            row = row / _magnitude(row, "rms", eps) * norm
        result[:] = [np.sum(row * weights) for weights in weight]
    (y,) = gated(lambda: (y,))() if gated_pair else (y,)
    return (y if residual is None else y + residual,)


def token_attention(query, keys, values, bias, head_size):
    batch, tokens, inner = query.shape
    out = np.zeros(query.shape)
    for b, t, head in np.ndindex(batch, tokens, inner // head_size):
        channels = slice(head * head_size, (head + 1) * head_size)
        logits = np.array([np.sum(query[b, t, channels] * key) for key in keys[b, :, channels]])
        if bias is not None:
            logits = logits + np.broadcast_to(bias, (batch, inner // head_size, tokens, keys.shape[1]))[b, head, t]
        if np.all(logits == -np.inf):
            continue
        weights = np.exp(logits - np.max(logits))
        out[b, t, channels] = weights @ values[b, :, channels] / np.sum(weights)
    return (out,)


def _distance(a: np.ndarray, b: np.ndarray) -> int:
    return (int.from_bytes(a.tobytes(), "big") ^ int.from_bytes(b.tobytes(), "big")).bit_count()


def hamming_distance(a, b):
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.empty((*leading, a.shape[-2], b.shape[-2]), dtype=np.int64)
    rows_a = _rows(np.broadcast_to(a, (*leading, *a.shape[-2:])), 2)
    rows_b = _rows(np.broadcast_to(b, (*leading, *b.shape[-2:])), 2)
    for p, q, result in zip(rows_a, rows_b, _rows(out, 2), strict=True):
        for i in range(p.shape[0]):
            for j in range(q.shape[0]):
                result[i, j] = _distance(p[i], q[j])
    return (out,)


def hamming_topk(a, b, k):
    distances, indices = np.empty((len(a), k), dtype=np.int64), np.empty((len(a), k), dtype=np.int64)
    for i, query in enumerate(a):
        found = sorted((_distance(query, row), j) for j, row in enumerate(b))[:k]
        distances[i] = [distance for distance, _ in found]
        indices[i] = [j for _, j in found]
    return distances, indices


def majority(tokens: list[np.ndarray], votes: list[int]) -> list[int]:
    """The packed majority of some tokens, in order of position; a tie takes the bit of the first."""
    if len(tokens) == 1:
        return list(tokens[0])
    ones = []
    for channel in range(8 * len(tokens[0])):
        balance = sum(v if _bit(t, channel) else -v for t, v in zip(tokens, votes, strict=True))
        ones.append(balance > 0 or (balance == 0 and _bit(tokens[0], channel) == 1))
    return _pack(ones)


def match_passage(tokens: np.ndarray, keep: int) -> tuple[list[int], int]:
    """The slot of every token of one unpadded passage, and how many slots there are."""
    groups = [[i] for i in range(len(tokens))]  # the original tokens of each current token, in order of position
    while len(groups) > keep:
        m = len(groups)
        votes = [majority([tokens[i] for i in sorted(group)], [1] * len(group)) for group in groups]
        current = [np.array(vote, dtype=np.uint8) for vote in votes]
        pairs = []
        for a in range(0, m, 2):
            distance, b = min((_distance(current[a], current[b]), b) for b in range(1, m, 2))
            pairs.append((distance, a, b))
        merges = sorted(pairs)[: min(m - keep, (m + 1) // 2)]
        for _, a, b in merges:
            groups[b] = groups[b] + groups[a]
        gone = {a for _, a, _ in merges}
        groups = [group for position, group in enumerate(groups) if position not in gone]
    slot = [0] * len(tokens)
    for position, group in enumerate(groups):
        for token in group:
            slot[token] = position
    return slot, len(groups)


def match_tokens(bits, keep, lengths, cu_seqlens):
    slot = np.full(bits.shape[:-1], -1, dtype=np.int64)
    new_lengths = np.zeros(len(keep), dtype=np.int64)
    for p in range(len(keep)):
        if cu_seqlens is None:
            where = (p, slice(0, bits.shape[1] if lengths is None else int(lengths[p])))
        else:
            where = slice(int(cu_seqlens[p]), int(cu_seqlens[p + 1]))
        slot[where], new_lengths[p] = match_passage(bits[where], int(keep[p]))
    return slot, new_lengths


def _row_of(slot, cu_in, cu_out) -> dict[tuple, tuple]:
    """The row of the result of every token that has one."""
    rows = {}
    for where in np.ndindex(slot.shape):
        if slot[where] < 0:
            continue
        if cu_in is None:
            rows[where] = (where[0], int(slot[where]))
        else:
            # The passage of a packed token is the last one that begins at or before it.
            passage = max(p for p in range(len(cu_in) - 1) if cu_in[p] <= where[0] < cu_in[p + 1])
            rows[where] = (int(cu_out[passage]) + int(slot[where]),)
    return rows


def _slots(tokens, slot, sizes, rows, cu_in, cu_out):
    """Shape of a result without its last dimension, and the tokens and votes of each of its filled rows."""
    shape = (rows,) if cu_in is not None else (slot.shape[0], rows)
    votes = np.ones_like(slot) if sizes is None else sizes
    members: dict[tuple, list] = {}
    for where, row in _row_of(slot, cu_in, cu_out).items():
        members.setdefault(row, []).append((tokens[where], int(votes[where])))
    return shape, members


def merge_bits(bits, slot, sizes, rows, cu_in, cu_out):
    shape, members = _slots(bits, slot, sizes, rows, cu_in, cu_out)
    out, new_sizes = np.zeros((*shape, bits.shape[-1]), dtype=np.uint8), np.zeros(shape, dtype=np.int64)
    for row, found in members.items():
        new_sizes[row] = sum(votes for _, votes in found)
        if new_sizes[row]:
            out[row] = majority([token for token, _ in found], [votes for _, votes in found])
    return out, new_sizes


def merge_tokens(x, slot, sizes, rows, cu_in, cu_out):
    shape, members = _slots(x, slot, sizes, rows, cu_in, cu_out)
    out, new_sizes = np.zeros((*shape, x.shape[-1])), np.zeros(shape, dtype=np.int64)
    for row, found in members.items():
        new_sizes[row] = sum(votes for _, votes in found)
        out[row] = sum(token * votes for token, votes in found) / max(new_sizes[row], 1)
    return out, new_sizes


def merge_tokens_backward(grad, slot, sizes, new_sizes, cu_in, cu_out):
    grad_x = np.zeros((*slot.shape, grad.shape[-1]))
    for where, row in _row_of(slot, cu_in, cu_out).items():
        grad_x[where] = grad[row] * (1 if sizes is None else int(sizes[where])) / max(int(new_sizes[row]), 1)
    return (grad_x,)
