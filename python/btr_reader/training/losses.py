"""The training objectives (BTR, arXiv 2310.01329, section on training objectives)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder import LayerTrace
from ..tokenizer import PAD


def task_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the target tokens: logits `(B, L, V)`, targets int64 `(B, L)`, padding not counted.

    >>> task_loss(torch.zeros(1, 2, 4), torch.tensor([[3, 0]])).item()  # log 4: the second token is padding
    1.3862943649291992
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)


def output_divergence(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """KL(teacher || student) of the next-token distributions, the mean over target tokens.

    student, teacher: logits `(B, L, V)`. targets: int64 `(B, L)`, whose padding does not count.
    """
    present = targets != PAD
    log_student, log_teacher = (F.log_softmax(logits[present], dim=-1) for logits in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def relative_error(states: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over the targets' mean square, which is taken as given.

    T5 is pre-norm: its states grow to hundreds in some models and layers, and stay near 1 in others, so that no weight
    of a plain error would do for all. (Our choice; the paper does not say.)
    """
    return F.mse_loss(states, targets) / targets.detach().pow(2).mean().clamp(min=1e-6)


def recovery_loss(restored: Tensor, states: Tensor, sizes: Tensor) -> Tensor:
    """Passage representation recovery: relative squared error of restored tokens to the floats they replace.

    restored, states: `(..., d)`. sizes: int `(...)`, 0 for padding, which does not count. The floats are the target
    and the encoder's own: both sides have gradients, so that states also move to where they are restored well.
    """
    return relative_error(restored[sizes > 0], states[sizes > 0])


def top_tokens(traces: Sequence[LayerTrace], share: float) -> Tensor:
    """The passage tokens that get the most attention from the query in the teacher: bool `(N, T)`.

    The attention is averaged over the joint layers, and the best ceil(share * n) tokens of each passage of n are taken.
    """
    attention = torch.stack([trace.attention() for trace in traces]).mean(0)
    present = traces[0].slots >= 0
    attention = attention.masked_fill(~present, -torch.inf)
    wanted = (present.sum(1, keepdim=True) * share).ceil()
    rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < wanted) & present


def distillation_loss(student: Sequence[LayerTrace], teacher: Sequence[LayerTrace], share: float) -> Tensor:
    """Query-aware passage token distillation: relative squared error of states, the mean over the joint layers.

    It counts the tokens that the teacher's query attends to most (`top_tokens`). Where the student has merged tokens, a
    token's state is that of the slot it went to. The teacher must not have merged any.
    """
    chosen = top_tokens(teacher, share)
    errors = []
    for ours, theirs in zip(student, teacher, strict=True):
        slots = ours.slots.clamp(min=0)[..., None].expand(-1, -1, ours.states.shape[-1])
        states = ours.states[:, ours.width :].gather(1, slots)
        errors.append(relative_error(states[chosen], theirs.states[:, theirs.width :][chosen]))
    return torch.stack(errors).mean()
