"""Arguments of the attention of few tokens, and the magnitude of the terms of its result (see `cases`)."""

from __future__ import annotations

import numpy as np
import torch

from . import numpy_definitions as defined
from .picks import FLOATS


def token_attention(picks, tokens, d):
    """d channels of each head; `tokens` are keys, since there are few queries."""
    batch, queries, heads = (*picks.choice(((1, 1), (2, 1), (1, 3), (0, 1), (2, 0))), picks.choice((1, 2, 5)))
    dtype = picks.choice(FLOATS)
    query, keys, values = (
        picks.floats((batch, count, heads * d), dtype, special=False) for count in (queries, tokens, tokens)
    )

    def bias():
        shape = [picks.choice((1, size)) for size in (batch, heads, queries, tokens)]
        values = picks.floats(shape, special=False)
        hidden = picks.integers(shape, 0, picks.choice((1, 9)), torch.int32)
        return values.masked_fill(hidden == 0, -torch.inf)

    return query, keys, values, picks.maybe(bias), d


def token_attention_terms(query, keys, values, bias, head_size):
    """Of the weighted values; an error of a logit, which grows with its own terms, is a relative one of its weight."""
    (mixed,) = defined.token_attention(query, keys, np.abs(values), bias, head_size)
    batch, tokens, inner = query.shape
    size = np.ones((batch, tokens, inner))
    for b, t, head in np.ndindex(batch, tokens, inner // head_size):
        channels = slice(head * head_size, (head + 1) * head_size)
        logits = np.abs(keys[b, :, channels]) @ np.abs(query[b, t, channels])
        if bias is not None:
            of_bias = np.broadcast_to(bias, (batch, inner // head_size, tokens, keys.shape[1]))[b, head, t]
            logits = logits + np.where(np.isfinite(of_bias), np.abs(of_bias), 0.0)
        size[b, t, channels] += 2 * np.max(logits, initial=0.0)
    return (mixed * size,)
