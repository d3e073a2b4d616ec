"""Definition of the attention of few tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def token_attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, head_size: int) -> Tensor:
    """softmax(query @ keys.T + bias) @ values of every head in float32; 0 where every key has a bias of -inf."""
    query, keys, values_of_heads = (
        x.float().unflatten(-1, (-1, head_size)).transpose(1, 2) for x in (query, keys, values)
    )
    logits = query @ keys.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias.float()
    unseen = (logits == -torch.inf).all(-1, keepdim=True)
    weights = logits.softmax(-1).masked_fill(unseen, 0.0)
    return (weights @ values_of_heads).transpose(1, 2).flatten(2).to(values.dtype)
