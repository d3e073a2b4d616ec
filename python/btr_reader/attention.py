"""T5 attention: relative position bias, bias of a batch with padding and merged tokens, attention itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from btr_kernels import token_attention

from .devices import runs_token_kernels


def position_buckets(distance: Tensor, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """T5's bucket of each relative position (key position - query position), int64 of the same shape.

    Small distances have a bucket each, larger ones share buckets of logarithmically growing width, and all from
    `max_distance` on share the last. Source: Raffel et al. 2020, section 2.1.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    shared = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, shared)


def distance_bias(attention: T5Attention, length: int, *, bidirectional: bool) -> Tensor:
    """The bias of every distance from -(length - 1) to length - 1: `(heads, 2 * length - 1)`."""
    distance = torch.arange(-(length - 1), length, device=attention.q.weight.device)
    buckets = position_buckets(
        distance,
        bidirectional=bidirectional,
        buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return attention.relative_attention_bias(buckets).T


def attention_bias(by_distance: Tensor, sizes: Tensor, positions: Tensor | None = None) -> Tensor:
    """What is added to the attention logits of N sequences of n tokens, `(N, heads, n, n)`.

    by_distance: `distance_bias` for at least the largest position + 1. sizes: int32 `(N, n)`: a key that stands for s
    tokens gets log(s) (as if it were there s times), a key of size 0 is padding and gets -inf. positions: int `(N, n)`,
    or None for 0..n-1 in every sequence.

    The term log(s) is the proportional attention of Token Merging (Bolya et al. 2023, section 3).
    """
    zero = by_distance.shape[-1] // 2
    if positions is None:
        column = torch.arange(sizes.shape[-1], device=by_distance.device)
        bias = by_distance[:, column - column[:, None] + zero][None]
    else:
        bias = by_distance[:, positions[:, None, :] - positions[:, :, None] + zero].transpose(0, 1)
    return bias + size_bias(sizes, bias.dtype)[:, None, None, :]


def size_bias(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """log(sizes): 0 for a plain token, -inf for padding."""
    return sizes.float().log().to(dtype)


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """T5's layer norm: x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, head_size: int) -> Tensor:
    """Multi-head attention of projected tokens: `(N, n, inner)`, `(N, m, inner)` twice -> `(N, n, inner)`.

    T5 does not divide the logits by the square root of the head size. bias: broadcastable to `(N, heads, n, m)`.
    """
    if query.shape[1] == 1 and runs_token_kernels(query):
        return token_attention(query, key, value, bias, head_size=head_size)
    query, key, value = (x.unflatten(-1, (-1, head_size)).transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)
