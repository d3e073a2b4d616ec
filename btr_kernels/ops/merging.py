"""Schemas, checks, fakes and gradients of token matching and merging."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import checks
from ..backends import native
from .define import Result, define, register_autograd

_INT32_MAX = 2**31 - 1


def _passages(tokens: Tensor, name: str, cu_seqlens: Tensor | None) -> int:
    """Number of passages, after checking that tokens are (B, n, ...) or, with cu_seqlens, (total, ...)."""
    if cu_seqlens is None:
        checks.has_dims(name, tokens, 3, "(B, n, ...)")
        return tokens.shape[0]
    checks.has_dims(name, tokens, 2, "(total, ...), since cu_seqlens was given")
    checks.offsets("cu_seqlens", cu_seqlens, tokens.device)
    return cu_seqlens.shape[0] - 1


def _check_offsets(name: str, cu_seqlens: Tensor, total: int, *, ends_at_total: bool = True) -> Tensor:
    """The lengths between the offsets."""
    ends = cu_seqlens[:: max(cu_seqlens.shape[0] - 1, 1)].tolist()
    first, last = ends[0], ends[-1]
    if first != 0 or (last != total if ends_at_total else last > total):
        raise ValueError(f"{name}: expected offsets from 0 to {total}, got {first} to {last}")
    lengths = cu_seqlens.diff()
    if lengths.numel() and int(lengths.amin()) < 0:
        raise ValueError(f"{name}: expected offsets that never decrease")
    return lengths


def _match_tokens(bits: Tensor, keep: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> list[Result]:
    checks.packed("bits", bits)
    batch = _passages(bits, "bits", cu_seqlens)
    checks.is_tensor("keep", keep)
    checks.integers("keep", keep, (batch,), "(B,)", bits.device)
    if lengths is not None and cu_seqlens is not None:
        raise ValueError("lengths: expected None together with cu_seqlens, which already tells the lengths")
    checks.integers("lengths", lengths, (batch,), "(B,)", bits.device)
    return [Result(bits.shape[:-1], torch.int32), Result((batch,), torch.int32)]


def _check_match_values(bits: Tensor, keep: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> None:
    rows = bits.shape[1 if cu_seqlens is None else 0]
    if native.says_yes("lengths_fit", keep, lengths, cu_seqlens, rows):
        return
    checks.within("keep", keep, 1, 2**63 - 1)
    if lengths is not None:
        checks.within("lengths", lengths, 0, rows)
    if cu_seqlens is not None:
        _check_offsets("cu_seqlens", cu_seqlens, rows)


define(
    "match_tokens",
    "Tensor bits, Tensor keep, Tensor? lengths, Tensor? cu_seqlens",
    _match_tokens,
    results=2,
    check_values=_check_match_values,
)


def _plan(
    name: str,
    shape: Sequence[int],
    device: torch.device,
    batch: int,
    slot: Tensor,
    sizes: Tensor | None,
    cu_in: Tensor | None,
    cu_out: Tensor | None,
) -> None:
    """Check what tells the row of each token; `shape` is that of `name` without the last dimension."""
    checks.has_dtype("plan.slot", slot, (torch.int32,))
    checks.has_shape("plan.slot", slot, shape, f"of {name} without the last dimension")
    checks.on_device("plan.slot", slot, device)
    if sizes is not None:
        checks.has_dtype("sizes", sizes, (torch.int32,))
        checks.has_shape("sizes", sizes, shape, f"of {name} without the last dimension")
        checks.on_device("sizes", sizes, device)
    if (cu_in is None) != (cu_out is None):
        raise ValueError("plan: expected both the old and the new cu_seqlens or neither, got one")
    checks.integers("plan.cu_seqlens", cu_out, (batch + 1,), "(B + 1,)", device)


def _merge(
    name: str,
    tokens: Tensor,
    slot: Tensor,
    sizes: Tensor | None,
    rows: int,
    cu_in: Tensor | None,
    cu_out: Tensor | None,
) -> list[Result]:
    batch = _passages(tokens, name, cu_in)
    _plan(name, tokens.shape[:-1], tokens.device, batch, slot, sizes, cu_in, cu_out)
    checks.is_int("rows", rows, 0)
    shape = (rows,) if cu_in is not None else (batch, rows)
    return [Result((*shape, tokens.shape[-1]), tokens.dtype), Result(shape, torch.int32)]


def _check_merge_values(
    tokens: Tensor, slot: Tensor, sizes: Tensor | None, rows: int, cu_in: Tensor | None, cu_out: Tensor | None
) -> None:
    if native.says_yes("plan_fits", slot, sizes, rows, cu_in, cu_out):
        return
    if sizes is not None:
        checks.within("sizes", sizes, 0, _INT32_MAX)
        total = int(sizes.sum(dtype=torch.int64))
        if total > _INT32_MAX:
            raise ValueError(f"sizes: expected a sum below 2**31, got {total}")
    if cu_in is None:
        checks.within("plan.slot", slot, -1, rows - 1)
        return
    lengths = _check_offsets("cu_seqlens", cu_in, tokens.shape[0])
    room = _check_offsets("plan.cu_seqlens", cu_out, rows, ends_at_total=False)
    checks.within("plan.slot", slot, -1, rows - 1)
    if bool((slot >= room.repeat_interleave(lengths)).any()):
        raise ValueError("plan.slot: expected every slot below the new length of its passage")


_MERGE = "Tensor slot, Tensor? sizes, SymInt rows, Tensor? cu_in, Tensor? cu_out"


def _merge_bits(bits: Tensor, *rest) -> list[Result]:
    checks.packed("bits", bits)
    return _merge("bits", bits, *rest)


def _merge_tokens(x: Tensor, *rest) -> list[Result]:
    checks.floats("x", x)
    return _merge("x", x, *rest)


define("merge_bits", f"Tensor bits, {_MERGE}", _merge_bits, results=2, check_values=_check_merge_values)
define("merge_tokens", f"Tensor x, {_MERGE}", _merge_tokens, results=2, check_values=_check_merge_values)


def _merge_tokens_backward(
    grad: Tensor,
    slot: Tensor,
    sizes: Tensor | None,
    new_sizes: Tensor,
    cu_in: Tensor | None,
    cu_out: Tensor | None,
) -> list[Result]:
    checks.floats("grad", grad)
    batch = _passages(grad, "grad", cu_in)
    checks.is_tensor("plan.slot", slot)
    checks.has_dims("plan.slot", slot, grad.dim() - 1, "of the tokens without the last dimension")
    shape = slot.shape if cu_in is not None else (batch, slot.shape[1])
    _plan("the tokens", shape, grad.device, batch, slot, sizes, cu_in, cu_out)
    checks.has_dtype("new_sizes", new_sizes, (torch.int32,))
    checks.has_shape("new_sizes", new_sizes, grad.shape[:-1], "of grad without the last dimension")
    checks.on_device("new_sizes", new_sizes, grad.device)
    return [Result((*slot.shape, grad.shape[-1]), grad.dtype)]


def _check_backward_values(
    grad: Tensor,
    slot: Tensor,
    sizes: Tensor | None,
    new_sizes: Tensor,
    cu_in: Tensor | None,
    cu_out: Tensor | None,
) -> None:
    _check_merge_values(slot, slot, sizes, grad.shape[-2], cu_in, cu_out)


define(
    "merge_tokens_backward",
    "Tensor grad, Tensor slot, Tensor? sizes, Tensor new_sizes, Tensor? cu_in, Tensor? cu_out",
    _merge_tokens_backward,
    check_values=_check_backward_values,
)


def _merge_tokens_context(ctx, inputs, output) -> None:
    _, slot, sizes, _, cu_in, cu_out = inputs
    _, new_sizes = output
    ctx.mark_non_differentiable(new_sizes)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(slot, sizes, new_sizes, cu_in, cu_out)


def _merge_tokens_gradients(ctx, grad, _):
    grad_x = None if grad is None else torch.ops.btr.merge_tokens_backward(grad, *ctx.saved_tensors)
    return grad_x, None, None, None, None, None


def _merge_tokens_backward_context(ctx, inputs, output) -> None:
    grad, slot, sizes, _, cu_in, cu_out = inputs
    ctx.rows = grad.shape[-2]
    ctx.save_for_backward(slot, sizes, cu_in, cu_out)


def _merge_tokens_backward_gradients(ctx, grad):
    # Every token has the same share of its row's gradient as it has of the row's mean.
    slot, sizes, cu_in, cu_out = ctx.saved_tensors
    mean, _ = torch.ops.btr.merge_tokens(grad, slot, sizes, ctx.rows, cu_in, cu_out)
    return mean, None, None, None, None, None


register_autograd("merge_tokens", _merge_tokens_context, _merge_tokens_gradients)
register_autograd("merge_tokens_backward", _merge_tokens_backward_context, _merge_tokens_backward_gradients)
