"""Arguments of the projections and their gradients, and the magnitude of the terms of each result (see `cases`)."""

from __future__ import annotations

import numpy as np
import torch

from . import numpy_definitions as defined
from .comparison import FLOAT32_MAX, UNASKED
from .picks import FLOATS, bytes_for, leading


def columns(picks):
    return picks.choice((0, 1, 15, 16, 17, 65))


def epilogue(picks, shape, n):
    return (
        picks.maybe(lambda: picks.floats((n,))),
        picks.maybe(lambda: picks.floats(shape)),
        picks.choice(FLOATS),
    )


def unpack_matmul(picks, tokens, d):
    shape, n = leading(picks, tokens), columns(picks)
    scale = picks.maybe(lambda: picks.floats((d,)))
    return picks.bits((*shape, bytes_for(d))), picks.floats((n, d)), scale, *epilogue(picks, shape, n)


def unpack_matmul_terms(bits, weight, scale, bias, token_scale, out_dtype):
    absolute = [None if v is None else np.abs(v) for v in (weight, scale, bias, token_scale)]
    ones = np.full_like(bits, 255)
    (terms,) = defined.unpack_matmul(ones, *absolute)
    # The sum may overflow before token_scale makes it small again, or before it meets an infinite term.
    (sums,) = defined.unpack_matmul(ones, *map(finite, absolute[:2]), None, None)
    return (np.where(sums > FLOAT32_MAX / 4, UNASKED, terms),)


def unpack_matmul_backward(picks, tokens, d):
    shape, n = leading(picks, tokens), columns(picks)
    # Sums of the smallest numbers may be 0 or not before they are multiplied: not by infinities.
    scale = picks.maybe(lambda: picks.floats((d,), special=False))
    for_weight = picks.choice((True, False))
    return (
        picks.floats((*shape, n)),
        picks.bits((*shape, bytes_for(d))),
        picks.floats((n, d), special=False),
        scale,
        picks.maybe(lambda: picks.floats(shape)),
        for_weight,
        scale is not None and (not for_weight or picks.choice((True, False))),
    )


def unpack_matmul_backward_terms(grad, bits, weight, scale, token_scale, for_weight, for_scale):
    absolute = [None if v is None else np.abs(v) for v in (grad, weight, scale, token_scale)]
    ones = np.full_like(bits, 255)

    def terms(grad, weight, scale, token_scale, *wanted):
        return defined.unpack_matmul_backward(grad, ones, weight, scale, token_scale, *wanted)

    of_weight, of_scale = terms(*absolute, for_weight, for_scale)
    # Sums over tokens may overflow before they meet a small scale or weight.
    grad, weight, _, token_scale = map(finite, absolute)
    products, sums = terms(grad, weight, None, token_scale, True, True)
    large = products > FLOAT32_MAX / 4
    return (
        np.where(large, UNASKED, of_weight) if for_weight else of_weight,
        np.where(large.any(0) | (sums > FLOAT32_MAX / 4), UNASKED, of_scale) if for_scale else of_scale,
    )


def finite(values):
    return None if values is None else np.where(np.isfinite(values), values, 0.0)


def unpack_matmul_prepared(picks, tokens, d):
    shape, n = leading(picks, tokens), columns(picks)
    precision = picks.choice(("exact", "fast", "int8", *(("fp8",) if picks.float8 else ())))
    if precision == "fp8" or (precision == "fast" and picks.choice((False, True))):  # as prepared on a GPU
        dtype = torch.float8_e4m3fn if precision == "fp8" else torch.float16
        data = picks.floats((d, n), torch.float32, special=False).to(dtype)
        factors = picks.floats((1, n), torch.float32, special=False)
        if precision == "fp8":  # tensor cores add float8 products with fewer bits than float32 has
            bias, token_scale, _ = epilogue(picks, shape, n)
            return picks.bits((*shape, bytes_for(d))), data, factors, precision, bias, token_scale, torch.bfloat16
    elif precision == "exact":
        data, factors = picks.floats((d, n)), None
    elif precision == "fast":
        # The absolute values of the 64 channels of a block sum to less than 2^15. Factors are finite, as prepare_weight
        # makes them: a backend may multiply with them before it adds.
        data = picks.integers((d, n), -511, 511, torch.int16)
        factors = picks.floats((-(-d // 64), n), torch.float32, special=False)
    else:
        data, factors = picks.integers((d, n), -127, 127, torch.int8), picks.floats((1, n), torch.float32)
    return picks.bits((*shape, bytes_for(d))), data, factors, precision, *epilogue(picks, shape, n)


def unpack_matmul_prepared_terms(bits, data, factors, precision, bias, token_scale, out_dtype):
    weight = data.T.astype(np.float64)
    if factors is not None:
        weight = weight * np.repeat(factors, len(data) if len(factors) == 1 else 64, axis=0)[: len(data)].T
    return unpack_matmul_terms(bits, weight, None, bias, token_scale, out_dtype)


def gated(sample):
    """Arguments of a projection with twice as many columns."""

    def twice(picks, tokens, d):
        def double(tensor, dim):
            if tensor is None:
                return None
            plain = tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor
            return torch.cat([plain, plain.flip(dim)], dim).view(tensor.dtype)

        bits, weight, *middle, bias, token_scale, out_dtype = sample(picks, tokens, d)
        prepared = len(middle) == 2
        weight = double(weight, 1 if prepared else 0)
        if prepared:
            middle[0] = double(middle[0], 1)
        return bits, weight, *middle, double(bias, 0), token_scale, out_dtype

    return twice


def gated_terms(project, terms):
    """The error of a product is that of each factor times the other; gelu has slopes of up to 1.13."""

    def of_product(*args):
        ((y,), (s,)) = project(*args), terms(*args)
        (gate, linear), (gate_terms, linear_terms) = np.split(y, 2, -1), np.split(s, 2, -1)
        unasked = (gate_terms == UNASKED) | (linear_terms == UNASKED)
        # Where gelu becomes 0 depends on how tanh is rounded, and 0 times infinity is NaN.
        unasked |= np.isinf(linear) & (gate > -5.3) & (gate < -5.0)
        size = 1.13 * gate_terms * np.abs(linear) + np.abs(defined.gelu(gate)) * linear_terms
        return (np.where(unasked | (gate_terms**3 > FLOAT32_MAX), UNASKED, size),)

    return of_product


def token_linear(picks, tokens, d):
    shape, n = leading(picks, tokens), columns(picks)
    gated = picks.choice((False, True))
    norm = picks.maybe(lambda: picks.floats((d,)))
    return (
        picks.floats((*shape, d), special=norm is None),
        picks.floats((2 * n if gated else n, d)),
        norm,
        picks.choice((1e-6, 0.1)),
        picks.maybe(lambda: picks.floats((*shape, n))),
        gated,
    )


def token_linear_terms(x, weight, norm, eps, residual, gated):
    def terms(x, weight, norm, eps):
        absolute = [None if v is None else np.abs(v) for v in (x, weight, norm)]
        sums = defined.token_linear(*map(finite, absolute), eps, None, False)[0]
        return (np.where(sums > FLOAT32_MAX / 4, UNASKED, defined.token_linear(*absolute, eps, None, False)[0]),)

    def products(*args):
        return defined.token_linear(*args, None, False)

    (size,) = (gated_terms(products, terms) if gated else terms)(x, weight, norm, eps)
    return (size if residual is None else np.where(size == UNASKED, UNASKED, size + np.abs(residual)),)
