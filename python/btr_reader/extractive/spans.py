"""Answers as spans: their loss, and the best one of several passages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Logit of a token that cannot be part of an answer. Finite, so that divergences need no exceptions.
BLOCKED = -1e4


def span_loss(start: Tensor, end: Tensor, spans: Tensor) -> Tensor:
    """-log of the probability of all accepted spans, the mean over questions.

    start, end: logits `(B, n)` over the tokens of all passages of a question, each normalised over all of them. spans:
    int64 `(B, S, 2)`, first and last token of the places where an answer stands, -1 behind the last; each question
    needs one. An answer may stand in several places, and none of them is known to be the one that was meant.

    >>> span_loss(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([[[1, 2], [3, 3]]])).item()  # -log(2/16)
    2.079441547393799
    """
    first, last = (
        F.log_softmax(logits, -1).gather(1, spans[..., side].clamp(min=0)) for side, logits in enumerate((start, end))
    )
    scores = (first + last).masked_fill(spans[..., 0] < 0, -torch.inf)
    return -scores.logsumexp(-1).mean()


def span_divergence(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """KL(teacher || student) of the distributions of first and last token: their sum, the mean over questions.

    Each is a pair of logits `(B, n)` over the tokens of all passages of a question.
    """
    pairs = zip(student, teacher, strict=True)
    terms = [
        F.kl_div(F.log_softmax(ours, -1), F.log_softmax(theirs, -1), reduction="batchmean", log_target=True)
        for ours, theirs in pairs
    ]
    return torch.stack(terms).sum()


def best_spans(start: Tensor, end: Tensor, longest: int) -> Tensor:
    """Passage, first and last token of the span with the largest start + end, int64 `(B, 3)`; of equals the earliest.

    start, end: logits `(B, P, T)`. longest: tokens that an answer can have. A span lies within one passage.
    """
    length = start.shape[-1]
    places = torch.arange(length, device=start.device)
    distance = places - places[:, None]
    possible = (distance >= 0) & (distance < longest)
    scores = (start[..., :, None] + end[..., None, :]).masked_fill(~possible, -torch.inf)
    best = scores.flatten(1).argmax(1)
    passage, rest = best // length**2, best % length**2
    return torch.stack([passage, rest // length, rest % length], 1)
