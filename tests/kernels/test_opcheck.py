"""torch.library.opcheck: schema, autograd registration, fake tensors and AOT dispatch of every operator."""

from __future__ import annotations

import pytest
import torch

from .cases import OPERATORS, WITH_OUT, sample

SIZES = ((3, 9), (2, 64), (0, 8))
DIFFERENTIABLE = ("unpack_bits", "sign_scale", "unpack_matmul", "merge_tokens", "merge_tokens_backward")


def _out_for(name: str, args: tuple) -> torch.Tensor:
    (result,) = OPERATORS[name](*args)
    return torch.empty_like(result)


@pytest.mark.parametrize("tokens, d", SIZES)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_passes_opcheck(name, tokens, d, implementation):
    report = torch.library.opcheck(getattr(torch.ops.btr, name).default, sample(name, tokens, d))
    assert set(report.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_variant_passes_opcheck(name, implementation):
    args = sample(name, 3, 9)
    report = torch.library.opcheck(getattr(torch.ops.btr, f"{name}_out").default, (*args, _out_for(name, args)))
    assert set(report.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_operator_with_gradients_passes_opcheck(name, implementation):
    def with_gradient(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().clone().requires_grad_()
        return value

    for seed in range(3):
        args = tuple(map(with_gradient, sample(name, 3, 9, seed)))
        report = torch.library.opcheck(getattr(torch.ops.btr, name).default, args)
        assert set(report.values()) == {"SUCCESS"}
