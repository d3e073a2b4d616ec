"""When a result counts as right: integers exactly, floats within twice PyTorch's own rounding error.

The rule for floats. Let t be the exact value of an element (float64) and s the sum of the magnitudes of the terms it
is a sum of: rounding errors are proportional to s, whatever cancels in t. The error of an element is abs(y - t) / s.
The largest error of a tensor may be twice the largest that plain PyTorch makes for the same arguments, plus
2 * 2**-23: PyTorch may be exact by luck (a single term), and float32 sums taken in another order differ by less than
that for any d tested here. A wrong bit, a wrong index or a low-precision sum is off by orders of magnitude more.

Elements that are not finite must agree in kind (NaN, +inf, -inf). Nothing is asked of an element whose finite terms
may overflow float32 on the way: its s is large, or UNASKED.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 2 * 2.0**-23
#: In place of s: anything goes.
UNASKED = -1.0
FLOAT32_MAX = torch.finfo(torch.float32).max


def assert_exact(name: str, got: Tensor, expected: Tensor, free: Tensor | None = None) -> None:
    """Equal everywhere (NaN equals NaN) but where `free` says that anything goes."""
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    equal = (got == expected) | ((got != got) & (expected != expected))
    if free is not None:
        equal |= free
    assert bool(equal.all()), (
        f"{name}: {int((~equal).sum())} of {equal.numel()} elements differ, first at {_first(~equal)}: "
        f"got {got[~equal][0].item()}, expected {expected[~equal][0].item()}"
    )


def _kind(values: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 +inf, 3 -inf."""
    return values.isnan() + 2 * values.isposinf() + 3 * values.isneginf()


def _errors(got: Tensor, exact: Tensor, terms: Tensor) -> Tensor:
    # Results below the smallest normal number of their dtype round to multiples of a fixed step.
    smallest = max(torch.finfo(got.dtype).tiny, 1e-34)
    return (got.double() - exact).abs() / terms.clamp(min=smallest)


def assert_close(name: str, got: Tensor, exact: Tensor, terms: Tensor, torch_result: Tensor) -> None:
    """`exact` and `terms` are float64; `torch_result` is what plain PyTorch gives in the dtype of `got`."""
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    assert got.dtype == torch_result.dtype, f"{name}: {got.dtype}, expected {torch_result.dtype}"
    safe = (terms <= FLOAT32_MAX / 4) & (terms != UNASKED)
    largest = torch.finfo(got.dtype).max
    # Values about as large as the dtype holds may round either way.
    safe &= (exact.abs() < 0.99 * largest) | (exact.abs() > 1.01 * largest)
    rounded = exact.where(exact.abs() <= largest, exact.sign() * torch.inf).where(~exact.isnan(), exact)

    # Where the arguments themselves are not finite, s is not either, and PyTorch shows which kind float32 gives.
    agreed = safe | (_kind(torch_result) == _kind(rounded)) & (terms.isinf() | terms.isnan())
    wrong = agreed & (_kind(got) != _kind(rounded))
    assert not bool(wrong.any()), (
        f"{name}: at {_first(wrong)}: got {got[wrong][0].item()}, expected {exact[wrong][0].item()}"
    )
    finite = safe & rounded.isfinite()
    if not bool(finite.any()):
        return
    errors = _errors(got, exact, terms)[finite]
    allowed = 2 * float(_errors(torch_result, exact, terms)[finite].max()) + SLACK
    assert float(errors.max()) <= allowed, (
        f"{name}: error {float(errors.max()):.3g} of the terms' magnitude, allowed {allowed:.3g} "
        f"(twice PyTorch's own), in {int((errors > allowed).sum())} of {errors.numel()} elements"
    )


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())
