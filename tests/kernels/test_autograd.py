"""Gradients against plain PyTorch autograd of formulas written here, within twice PyTorch's own float32 error."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import btr_kernels as bk
from btr_kernels import reference

from .comparison import assert_close

SHAPES = ((5,), (0, 5), (7, 33), (2, 3, 64))
NORMS = (None, "rms", "layer")
GRADS = ("ste", ("tanh", 1.0), ("tanh", 4.0))


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).requires_grad_()


def assert_gradients(function, formula, leaves, absolute=None):
    """`function` on the leaves against `formula` on them in float64, allowed what `formula` errs in float32.

    Errors are relative to the sum of the terms' magnitudes: the gradients of `absolute`, the formula of the
    magnitudes, at the magnitudes; or without it simply the largest gradient, here or upstream.
    """
    upstream = torch.randn(function(*leaves).shape)

    def gradients(f, convert, upstream=upstream):
        inputs = [convert(t.detach()).requires_grad_() for t in leaves]
        y = f(*inputs)
        return torch.autograd.grad(y, inputs, upstream.to(y.dtype))

    got, exact = gradients(function, torch.clone), gradients(formula, torch.Tensor.double)
    plain = gradients(formula, torch.Tensor.float)
    if absolute is None:
        largest = max(float(t.abs().max()) for t in (*exact, upstream) if t.numel()) if upstream.numel() else 0.0
        terms = [torch.full_like(e, largest) for e in exact]
    else:
        terms = gradients(absolute, lambda t: t.double().abs(), upstream.abs())
    for i, (g, e, s, p, t) in enumerate(zip(got, exact, terms, plain, leaves, strict=True)):
        assert g.dtype == t.dtype and g.shape == t.shape
        assert_close(f"gradient {i}", g, e, s, p.to(t.dtype))


def normalised(x, norm, eps=1e-6):
    if norm == "rms":
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    return F.layer_norm(x, x.shape[-1:], eps=eps) if norm == "layer" else x


def signs_of(bits, d):
    unpacked = torch.tensor([byte >> i & 1 for byte in bits.flatten().tolist() for i in range(8)])
    return unpacked.reshape(*bits.shape[:-1], 8 * bits.shape[-1])[..., :d] * 2.0 - 1.0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sign_scale_has_the_gradient_of_its_surrogate(shape, grad, norm, implementation):
    def formula(x, scale):
        n = normalised(x, norm)
        soft = torch.where(n.abs() <= 1.5, n, n.detach()) if grad == "ste" else torch.tanh(grad[1] * n)
        return scale * (torch.where(n >= 0, 1.0, -1.0) + soft - soft.detach())

    leaves = [leaf(*shape), leaf(shape[-1])]
    assert_gradients(lambda x, s: bk.sign_scale(x, s, norm, grad=grad, clamp=1.5), formula, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_sign_scale_gradients_have_the_dtype_of_what_they_are_of(dtype, norm, implementation):
    x, scale = leaf(4, 33, dtype=dtype), leaf(33)
    bk.sign_scale(x, scale, norm).sum().backward()
    assert x.grad.dtype == dtype and scale.grad.dtype == torch.float32


def test_gradient_window_includes_its_edge(implementation):
    x = torch.tensor([-2.0, -2.0001, 2.0, 2.0001, 0.0, -0.0]).requires_grad_()
    bk.sign_scale(x, torch.full((6,), 3.0), clamp=2.0).sum().backward()
    assert x.grad.tolist() == [3, 0, 3, 0, 3, 3]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("used", ["scale", "bias", "token_scale", "all"])
def test_unpack_bits_gradients(shape, used, implementation):
    *tokens, d = shape
    bits = bk.pack_bits(torch.randn(shape))
    signs = signs_of(bits, d)
    arguments = {"scale": leaf(d), "bias": leaf(d), "token_scale": leaf(*tokens)}
    if used != "all":
        arguments = {used: arguments[used]}

    def formula(signs):
        def restored(*values):
            given = dict(zip(arguments, values, strict=True))
            y = signs.to(values[0].dtype) * given.get("token_scale", signs.new_ones(tokens)).unsqueeze(-1)
            return y * given.get("scale", 1.0) + given.get("bias", 0.0)

        return restored

    call = lambda *values: bk.unpack_bits(bits, d, **dict(zip(arguments, values, strict=True)))
    assert_gradients(call, formula(signs), list(arguments.values()), formula(signs.abs()))


@pytest.mark.parametrize("shape", SHAPES)
def test_restore_bits_gradients(shape, implementation):
    bits = bk.pack_bits(torch.randn(shape))
    signs = signs_of(bits, shape[-1])
    formula = lambda signs: lambda scale: signs.to(scale.dtype) * scale
    assert_gradients(
        lambda scale: bk.restore_bits(bits, scale)[1], formula(signs), [leaf(shape[-1])], formula(signs.abs())
    )


@pytest.mark.parametrize("n", [0, 1, 17])
@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_matmul_gradients(shape, n, implementation):
    *tokens, d = shape
    bits = bk.pack_bits(torch.randn(shape))
    signs = signs_of(bits, d)
    formula = lambda signs: lambda w, s, b, t: t.unsqueeze(-1) * ((signs.to(w.dtype) * s) @ w.T) + b
    call = lambda w, s, b, t: bk.unpack_matmul(bits, w, s, b, token_scale=t)
    leaves = [leaf(n, d), leaf(d), leaf(n), leaf(*tokens)]
    assert_gradients(call, formula(signs), leaves, formula(signs.abs()))


def test_unpack_matmul_gradient_of_the_weight_alone(implementation):
    bits = bk.pack_bits(torch.randn(6, 20))
    signs = signs_of(bits, 20)
    assert_gradients(lambda w: bk.unpack_matmul(bits, w), lambda w: signs.to(w.dtype) @ w.T, [leaf(4, 20)])


@pytest.mark.parametrize("n", [0, 1, 17])
def test_unpack_geglu_gradients(n, implementation):
    bits = bk.pack_bits(torch.randn(3, 5, 20))
    signs = signs_of(bits, 20)

    def formula(w, s, b, t):
        gate, linear = (t.unsqueeze(-1) * ((signs.to(w.dtype) * s) @ w.T) + b).chunk(2, -1)
        return torch.nn.functional.gelu(gate, approximate="tanh") * linear

    leaves = [leaf(2 * n, 20), leaf(20), leaf(2 * n), leaf(3, 5)]
    values = [v.detach().requires_grad_() for v in leaves]
    call = lambda w, s, b, t: bk.unpack_geglu(bits, w, s, b, token_scale=t)
    for gradients in zip(
        torch.autograd.grad(call(*leaves).sum(), leaves),
        torch.autograd.grad(formula(*values).sum(), values),
        strict=True,
    ):
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    prepared = bk.prepare_weight(leaves[0].detach(), leaves[1].detach())
    torch.testing.assert_close(
        bk.unpack_geglu(bits, prepared, bias=leaves[2], token_scale=leaves[3]), call(*leaves), rtol=1e-4, atol=1e-5
    )


def test_prepared_weight_takes_no_part_in_gradients(implementation):
    prepared = bk.prepare_weight(leaf(4, 20))
    assert not prepared.data.requires_grad
    bits = bk.pack_bits(torch.randn(6, 20))
    assert not bk.unpack_matmul(bits, prepared).requires_grad


def test_bias_and_token_scale_of_a_prepared_weight_have_gradients(implementation):
    weight, bits = torch.randn(4, 20), bk.pack_bits(torch.randn(6, 20))
    prepared, signs = bk.prepare_weight(weight), reference.signs(bits, 20)
    assert_gradients(
        lambda b, t: bk.unpack_matmul(bits, prepared, bias=b, token_scale=t),
        lambda b, t: (signs.to(b.dtype) @ weight.to(b.dtype).T) * t.unsqueeze(-1) + b,
        [leaf(4), leaf(6)],
    )


def _mean_per_slot(x, slot, sizes, rows):
    """Weighted mean by a dense assignment matrix; padding has slot -1, which is no row."""
    weight = (slot.unsqueeze(-2) == torch.arange(rows).unsqueeze(-1)).to(x.dtype) * sizes.unsqueeze(-2).to(x.dtype)
    return (weight @ x) / weight.sum(-1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize("d", [1, 33])
@pytest.mark.parametrize("sized", [False, True])
def test_merge_tokens_gradient_on_padded_passages(d, sized, implementation):
    slot = torch.tensor([[0, 1, 0, 2, 2, 0], [1, 0, 1, -1, -1, -1]], dtype=torch.int32)
    sizes = torch.tensor([[1, 2, 3, 4, 0, 1], [2, 2, 5, 7, 0, 1]], dtype=torch.int32) if sized else None
    plan = bk.MergePlan(slot, torch.tensor([3, 2]), 4)
    weights = torch.ones_like(slot) if sizes is None else sizes
    call = lambda x: bk.merge_tokens(x, plan, sizes)[0]
    assert_gradients(call, lambda x: _mean_per_slot(x, slot, weights, 4), [leaf(2, 6, d)])


@pytest.mark.parametrize("sized", [False, True])
def test_merge_tokens_gradient_on_packed_passages(sized, implementation):
    slot = torch.tensor([0, 1, 0, 0, 0, 1], dtype=torch.int32)
    offsets, new_offsets = torch.tensor([0, 3, 3, 6]), torch.tensor([0, 2, 2, 4])
    sizes = torch.tensor([1, 2, 3, 4, 5, 6], dtype=torch.int32) if sized else None
    plan = bk.MergePlan(slot, torch.tensor([2, 0, 2]), 6, new_offsets, offsets, 5)
    weights = torch.ones_like(slot) if sizes is None else sizes
    row = slot + torch.tensor([0, 0, 0, 2, 2, 2])
    call = lambda x: bk.merge_tokens(x, plan, sizes)[0]
    assert_gradients(call, lambda x: _mean_per_slot(x, row, weights, 5), [leaf(6, 9)])


def test_merge_tokens_of_nothing_has_an_empty_gradient(implementation):
    x = leaf(2, 0, 5)
    plan = bk.match_tokens(torch.zeros(2, 0, 1, dtype=torch.uint8), 3)
    merged, _ = bk.merge_tokens(x, plan)
    merged.sum().backward()
    assert x.grad.shape == (2, 0, 5)


OUT_CALLS = {
    "unpack_bits scale": lambda bits, out: bk.unpack_bits(bits, 20, leaf(20), out=out),
    "unpack_bits bias": lambda bits, out: bk.unpack_bits(bits, 20, None, leaf(20), out=out),
    "unpack_bits token_scale": lambda bits, out: bk.unpack_bits(bits, 20, token_scale=leaf(3), out=out),
    "unpack_matmul weight": lambda bits, out: bk.unpack_matmul(bits, leaf(20, 20), out=out),
    "unpack_matmul bias": lambda bits, out: bk.unpack_matmul(bits, torch.randn(20, 20), None, leaf(20), out=out),
    "unpack_matmul prepared bias": lambda bits, out: bk.unpack_matmul(
        bits, bk.prepare_weight(torch.randn(20, 20)), bias=leaf(20), out=out
    ),
    "out itself": lambda bits, out: bk.unpack_bits(bits, 20, out=out.requires_grad_()),
}


@pytest.mark.parametrize("call", OUT_CALLS.values(), ids=OUT_CALLS)
def test_out_is_refused_where_a_gradient_would_be_lost(call):
    bits = bk.pack_bits(torch.randn(3, 20))
    with pytest.raises(ValueError, match="^out: "):
        call(bits, torch.empty(3, 20))
    with torch.no_grad():
        call(bits, torch.empty(3, 20))


def test_second_derivatives_of_sign_scale_are_refused():
    x = torch.randn(2, 8, requires_grad=True)
    y = bk.sign_scale(x, torch.ones(8), grad=("tanh", 1.5))
    (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="^sign_scale: second derivatives"):
        first.sum().backward()


def test_forward_mode_is_refused():
    bits, scale = bk.pack_bits(torch.randn(3, 20)), torch.rand(20)
    with pytest.raises(NotImplementedError, match="^forward-mode derivatives"):
        torch.func.jvp(lambda s: bk.unpack_bits(bits, 20, s), (scale,), (scale,))
    with torch.autograd.forward_ad.dual_level():
        assert bk.unpack_bits(bits, 20, scale).shape == (3, 20)  # nothing to derive


@pytest.mark.parametrize("used", ["weight", "scale", "all"])
def test_second_derivatives_of_unpack_matmul(used, implementation):
    bits, (m, n, d) = bk.pack_bits(torch.randn(6, 20)), (6, 4, 20)
    signs = signs_of(bits, d)
    weight, scale, token_scale = leaf(n, d), leaf(d), leaf(m)
    first = {"weight": [weight], "scale": [scale], "all": [weight, scale, token_scale]}[used]
    upstream, mixed = leaf(m, n), [torch.randn(t.shape) for t in first]

    def second(function):
        y = function(weight, scale, token_scale)
        gradients = torch.autograd.grad(y, first, upstream, create_graph=True)
        total = sum((g * w).sum() for g, w in zip(gradients, mixed, strict=True))
        return torch.autograd.grad(total, [upstream, weight, scale, token_scale], allow_unused=True)

    got = second(lambda w, s, t: bk.unpack_matmul(bits, w, s, token_scale=t))
    expected = second(lambda w, s, t: t.unsqueeze(-1) * ((signs * s) @ w.T))
    for g, e in zip(got, expected, strict=True):
        assert (g is None or not bool(g.any())) if e is None else torch.allclose(g, e, rtol=1e-4, atol=1e-4)
