"""Attention of few tokens: the public function."""

from __future__ import annotations

from torch import Tensor

from . import checks
from .ops.direct import calls as ops


def token_attention(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None, *, head_size: int
) -> Tensor:
    """Multi-head attention of one or a few tokens to many keys, as each step of a decoder has it.

    T5's: logits are not divided by the square root of the head size (scale the query where they should be).

    Args:
        query: (B, n, inner) float32, float16 or bfloat16; heads of `head_size` channels next to each other.
        keys: (B, S, inner) of the same dtype.
        values: (B, S, inner) of the same dtype.
        bias: float (B, heads, n, S), any of these sizes also 1; added to the logits; -inf hides a key.
        head_size: channels of a head.

    Returns:
        (B, n, inner) of the same dtype, computed in float32; 0 for a token all of whose keys are hidden. There is no
        gradient.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or a tensor that asks for a gradient; the message names the
            argument.

    Example:
        >>> memory = torch.randn(1, 370, 768)
        >>> token_attention(torch.randn(1, 1, 768), memory, memory, head_size=64).shape
        torch.Size([1, 1, 768])

    Source: Raffel et al. 2020 (T5), section 2.1, read token by token.
    """
    checks.is_tensor("query", query)
    checks.is_tensor("keys", keys)
    checks.is_tensor("values", values)
    checks.is_optional_tensor("bias", bias)
    checks.without_gradient("token_attention", query=query, keys=keys, values=values, bias=bias)
    return ops.token_attention(query, keys, values, bias, head_size)
