"""One row per operator: how to make arguments, what the result is by definition, and how far it may be from it.

A new operator is one new row here, and is then tested against its definition on every backend and instruction set,
at word and tile boundaries, on hypothesis' values and strides, under opcheck and under torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import btr_kernels as bk
from btr_kernels import reference

from . import attentions, masked, projections
from . import numpy_definitions as defined
from .comparison import FLOAT32_MAX, UNASKED, assert_close, assert_exact
from .picks import FLOATS, Picks, bytes_for, leading, restride
from .projections import finite

NORMS = ("none", "rms", "layer")
INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Operator:
    """How `torch.ops.btr.<name>` is tested.

    Attributes:
        sample: (picks, tokens, d) -> arguments of the operator.
        definition: the same arguments as NumPy arrays -> results as NumPy arrays.
        terms: arguments as NumPy arrays -> for each result the magnitude of the terms of each element
            (`comparison.assert_close`), or None where the result is exact.
        free: arguments as NumPy arrays -> for each result where the contract leaves a backend free, or None.
        public: the public call with the operator's arguments; None for operators that are only used inside.
        has_out: whether there is a variant `<name>_out`.
    """

    name: str
    sample: Callable[[Picks, int, int], tuple]
    definition: Callable[..., tuple]
    terms: Callable[..., tuple] | None = None
    free: Callable[..., tuple] | None = None
    public: Callable[..., Any] | None = None
    has_out: bool = False

    def __call__(self, *args) -> tuple[Tensor, ...]:
        return as_tuple(getattr(torch.ops.btr, self.name)(*args))

    def out(self, *args) -> None:
        getattr(torch.ops.btr, f"{self.name}_out")(*args)

    def expect(self, args: tuple) -> Expectation:
        return Expectation(self, args)


class Expectation:
    """What an operator must give for some arguments; computed once, compared with as many results as wanted."""

    def __init__(self, operator: Operator, args: tuple):
        self.name = operator.name
        arrays = [to_numpy(a) for a in args]
        self.torch = as_tuple(getattr(reference, operator.name)(*_accepted(operator.name, args)))
        with np.errstate(all="ignore"):
            self.exact = [torch.from_numpy(np.asarray(a)) for a in operator.definition(*arrays)]
            none = (None,) * len(self.exact)
            self.terms = [_optional(t) for t in (operator.terms(*arrays) if operator.terms else none)]
            self.free = [_optional(f) for f in (operator.free(*arrays) if operator.free else none)]

    def check(self, results: tuple[Tensor, ...]) -> None:
        assert len(results) == len(self.exact)
        for i, got in enumerate(results):
            name, exact, terms, free = f"{self.name}[{i}]", self.exact[i], self.terms[i], self.free[i]
            got = got.detach().cpu()
            if terms is not None:
                if free is not None:  # leave those elements to PyTorch
                    got = got.where(~free, self.torch[i])
                    exact = exact.where(~free, self.torch[i].double())
                assert_close(name, got, exact, terms, self.torch[i])
                continue
            if free is not None and free.dtype == torch.uint8:  # packed bits
                got, exact, free = got & ~free, exact & ~free, None
            assert got.dtype == self.torch[i].dtype, f"{name}: {got.dtype}, expected {self.torch[i].dtype}"
            assert_exact(name, got, exact.to(got.dtype), free)


def as_tuple(result) -> tuple:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def to_numpy(value):
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def _optional(array) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.asarray(array))


def _accepted(name: str, args: tuple) -> tuple:
    """The arguments that the reference takes, which are all of them."""
    return tuple(a.detach().cpu() if isinstance(a, Tensor) else a for a in args)


# Packing, unpacking, binarization


def _pack_bits(picks, tokens, d):
    shape = (*leading(picks, tokens), d)
    return (picks.bools(shape) if picks.choice((False, False, False, True)) else picks.floats(shape),)


def _unpack_bits(picks, tokens, d):
    shape = leading(picks, tokens)
    return (
        picks.bits((*shape, bytes_for(d))),
        d,
        picks.maybe(lambda: picks.floats((d,))),
        picks.maybe(lambda: picks.floats((d,))),
        picks.maybe(lambda: picks.floats(shape)),
        picks.choice(FLOATS),
    )


def _unpack_bits_terms(bits, d, scale, bias, token_scale, dtype):
    if bias is None and (scale is None or token_scale is None):
        return (None,)  # a single factor, rounded once
    absolute = [None if v is None else np.abs(v) for v in (scale, bias, token_scale)]
    return defined.unpack_bits(np.full_like(bits, 255), d, *absolute)


def _restore_bits(picks, tokens, d):
    bits = picks.bits((*leading(picks, tokens), bytes_for(d)))
    return picks.floats((d,)), bits, picks.choice(FLOATS)


def _eps(picks):
    return picks.choice((1e-6, 0.0, 0.1))


def _binarize(picks, tokens, d):
    shape = (*leading(picks, tokens), d)
    return picks.floats(shape), picks.choice(NORMS), _eps(picks), picks.choice((True, False))


def _binarize_terms(x, norm, eps, magnitude):
    # Centring in float32 costs an error in proportion to x, not to its deviation.
    return None, defined.binarize(x, "rms", eps, magnitude)[1]


def _binarize_free(x, norm, eps, magnitude):
    return defined.pack_bits(defined.undecided(x, norm))[0], None


def _sign_scale(picks, tokens, d):
    kind, limit = picks.choice((("ste", 2.0), ("ste", 0.5), ("tanh", 1.0), ("tanh", 4.0)))
    return (
        picks.floats((*leading(picks, tokens), d)),
        picks.floats((d,), special=False),
        picks.choice(NORMS),
        picks.choice((1e-6, 0.1)),
        kind,
        limit,
    )


def _sign_scale_backward(picks, tokens, d):
    x, *rest = _sign_scale(picks, tokens, d)
    return picks.floats(x.shape, x.dtype, special=False), x, *rest


def _sign_scale_backward_free(grad_out, x, scale, norm, eps, grad, limit):
    undecided = defined.undecided(x, norm).reshape(-1, x.shape[-1]).any(0)
    on_the_edge = np.zeros(x.shape, dtype=bool)
    if grad == "ste" and norm != "none":
        # A row where a normalised channel is within rounding of the window's edge may count it in or out.
        largest = np.max(np.abs(x), axis=-1, keepdims=True) if x.size else np.zeros((*x.shape[:-1], 1))
        centred = x - x.mean(-1, keepdims=True) if norm == "layer" else x
        size = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        near = np.abs(np.abs(centred / size) - limit) <= 1e-5 * (limit + largest / size)
        on_the_edge[:] = near.any(-1, keepdims=True)
    return on_the_edge, undecided


# Hamming distances


def _hamming_distance(picks, tokens, d):
    n = picks.choice((0, 1, 2, 15, 16, 17, 33))
    batch_a, batch_b = picks.choice((((), ()), ((2,), (2,)), ((2, 1), (3,)), ((), (2,)), ((0,), (1,))))
    return picks.bits((*batch_a, tokens, bytes_for(d))), picks.bits((*batch_b, n, bytes_for(d)))


def _hamming_topk(picks, tokens, d):
    n = picks.choice((1, 2, 15, 16, 17, 33, 100))
    return picks.bits((tokens, bytes_for(d))), picks.bits((n, bytes_for(d))), picks.integer(1, n)


# Matching and merging


def _offsets(picks, total, dtype):
    """Offsets of 0 to 3 passages, some of them empty, that hold `total` tokens."""
    if total == 0 and picks.choice((False, True)):
        return torch.zeros(1, dtype=dtype)
    inner = sorted(picks.integer(0, total) for _ in range(picks.integer(0, 2)))
    return torch.tensor([0, *inner, total], dtype=dtype)


def _match_tokens(picks, tokens, d):
    dtype = picks.choice(INTEGERS)
    if picks.choice((False, True)):
        cu_seqlens = _offsets(picks, tokens, dtype)
        batch, bits, lengths = len(cu_seqlens) - 1, picks.bits((tokens, bytes_for(d))), None
    else:
        batch, cu_seqlens = picks.choice((0, 1, 3)), None
        bits = picks.bits((batch, tokens, bytes_for(d)))
        lengths = picks.maybe(lambda: picks.integers((batch,), 0, tokens, dtype))
    return bits, picks.integers((batch,), 1, tokens + 2, dtype), lengths, cu_seqlens


def _merge(picks, tokens, make):
    """Tokens and any plan that is valid for them, whether or not `match_tokens` would make it."""
    if picks.choice((False, True)):
        dtype = picks.choice(INTEGERS)
        cu_in = _offsets(picks, tokens, dtype)
        room = [picks.integer(0, 1 + int(n)) for n in cu_in.diff()]
        cu_out = torch.tensor([0, *room], dtype=dtype).cumsum(0, dtype=dtype)
        slots = [picks.integers((n,), -1, r - 1, torch.int32) for n, r in zip(cu_in.diff().tolist(), room, strict=True)]
        slot = torch.cat([*slots, torch.empty(0, dtype=torch.int32)])
        rows = int(cu_out[-1]) + picks.choice((0, 2))
        x = make((tokens,))
    else:
        batch, rows, cu_in, cu_out = picks.choice((0, 1, 3)), picks.integer(0, tokens + 1), None, None
        slot = picks.integers((batch, tokens), -1, rows - 1, torch.int32)
        x = make((batch, tokens))
    sizes = picks.maybe(lambda: picks.integers(slot.shape, 0, 4, torch.int32))
    return x, restride(slot, picks.choice(("contiguous", "transposed", "step"))), sizes, rows, cu_in, cu_out


def _merge_bits(picks, tokens, d):
    return _merge(picks, tokens, lambda shape: picks.bits((*shape, bytes_for(d))))


def _merge_tokens(picks, tokens, d):
    return _merge(picks, tokens, lambda shape: picks.floats((*shape, d)))


def _merge_tokens_terms(x, *rest):
    terms, sizes = defined.merge_tokens(np.abs(x), *rest)
    sums = defined.merge_tokens(finite(np.abs(x)), *rest)[0] * np.maximum(sizes, 1)[..., None]
    return np.where(sums > FLOAT32_MAX / 4, UNASKED, terms), None


def _merge_tokens_backward(picks, tokens, d):
    x, slot, sizes, rows, cu_in, cu_out = _merge_tokens(picks, tokens, d)
    grad, new_sizes = reference.merge_tokens(x, slot, sizes, rows, cu_in, cu_out)
    return picks.floats(grad.shape, x.dtype, special=False), slot, sizes, new_sizes, cu_in, cu_out


def _merge_tokens_backward_terms(grad, *rest):
    return defined.merge_tokens_backward(np.abs(grad), *rest)


def _plan(slot, rows, cu_in, cu_out):
    return bk.MergePlan(slot, slot.new_zeros(0), rows, cu_out, cu_in, rows)


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("pack_bits", _pack_bits, defined.pack_bits, public=bk.pack_bits, has_out=True),
        Operator(
            "unpack_bits",
            _unpack_bits,
            defined.unpack_bits,
            _unpack_bits_terms,
            public=lambda bits, d, scale, bias, token_scale, dtype: bk.unpack_bits(
                bits, d, scale, bias, token_scale=token_scale, dtype=dtype
            ),
            has_out=True,
        ),
        Operator(
            "restore_bits",
            _restore_bits,
            defined.restore_bits,
            public=lambda scale, bits, dtype: bk.restore_bits(bits, scale, dtype=dtype),
        ),
        Operator(
            "binarize",
            _binarize,
            defined.binarize,
            _binarize_terms,
            _binarize_free,
            public=lambda x, norm, eps, magnitude: bk.binarize(x, None if norm == "none" else norm, eps, magnitude),
        ),
        Operator(
            "sign_scale",
            _sign_scale,
            defined.sign_scale,
            free=lambda x, scale, norm, *rest: (defined.undecided(x, norm),),
            public=lambda x, scale, norm, eps, grad, limit: bk.sign_scale(
                x, scale, None if norm == "none" else norm, eps, grad if grad == "ste" else (grad, limit)
            ),
        ),
        Operator(
            "sign_scale_backward",
            _sign_scale_backward,
            defined.sign_scale_backward,
            defined.sign_scale_backward_terms,
            _sign_scale_backward_free,
        ),
        Operator("compress_bits", masked.compress_bits, defined.compress_bits, public=bk.compress_bits, has_out=True),
        Operator("expand_bits", masked.expand_bits, defined.expand_bits, public=bk.expand_bits, has_out=True),
        Operator(
            "unpack_matmul",
            projections.unpack_matmul,
            defined.unpack_matmul,
            projections.unpack_matmul_terms,
            public=lambda bits, weight, scale, bias, token_scale, out_dtype: bk.unpack_matmul(
                bits, weight, scale, bias, token_scale=token_scale, out_dtype=out_dtype
            ),
            has_out=True,
        ),
        Operator(
            "unpack_matmul_backward",
            projections.unpack_matmul_backward,
            defined.unpack_matmul_backward,
            projections.unpack_matmul_backward_terms,
        ),
        Operator(
            "unpack_matmul_prepared",
            projections.unpack_matmul_prepared,
            defined.unpack_matmul_prepared,
            projections.unpack_matmul_prepared_terms,
            public=lambda bits, data, factors, precision, bias, token_scale, out_dtype: bk.unpack_matmul(
                bits,
                bk.PreparedWeight(data, factors, precision, torch.float32),
                bias=bias,
                token_scale=token_scale,
                out_dtype=out_dtype,
            ),
            has_out=True,
        ),
        Operator(
            "unpack_geglu",
            projections.gated(projections.unpack_matmul),
            defined.gated(defined.unpack_matmul),
            projections.gated_terms(defined.unpack_matmul, projections.unpack_matmul_terms),
            public=lambda bits, weight, scale, bias, token_scale, out_dtype: bk.unpack_geglu(
                bits, weight, scale, bias, token_scale=token_scale, out_dtype=out_dtype
            ),
            has_out=True,
        ),
        Operator(
            "unpack_geglu_prepared",
            projections.gated(projections.unpack_matmul_prepared),
            defined.gated(defined.unpack_matmul_prepared),
            projections.gated_terms(defined.unpack_matmul_prepared, projections.unpack_matmul_prepared_terms),
            public=lambda bits, data, factors, precision, bias, token_scale, out_dtype: bk.unpack_geglu(
                bits,
                bk.PreparedWeight(data, factors, precision, torch.float32),
                bias=bias,
                token_scale=token_scale,
                out_dtype=out_dtype,
            ),
            has_out=True,
        ),
        Operator(
            "token_linear",
            projections.token_linear,
            defined.token_linear,
            projections.token_linear_terms,
            public=lambda x, weight, norm, eps, residual, gated: bk.token_linear(
                x, weight, norm=norm, eps=eps, residual=residual, gated=gated
            ),
            has_out=True,
        ),
        Operator(
            "token_attention",
            attentions.token_attention,
            defined.token_attention,
            attentions.token_attention_terms,
            public=lambda query, keys, values, bias, head_size: bk.token_attention(
                query, keys, values, bias, head_size=head_size
            ),
        ),
        Operator(
            "hamming_distance", _hamming_distance, defined.hamming_distance, public=bk.hamming_distance, has_out=True
        ),
        Operator("hamming_topk", _hamming_topk, defined.hamming_topk, public=bk.hamming_topk),
        Operator(
            "match_tokens",
            _match_tokens,
            defined.match_tokens,
            public=lambda bits, keep, lengths, cu: bk.match_tokens(bits, keep, lengths, cu_seqlens=cu)[:2],
        ),
        Operator(
            "merge_bits",
            _merge_bits,
            defined.merge_bits,
            public=lambda bits, slot, sizes, rows, cu_in, cu_out: bk.merge_bits(
                bits, _plan(slot, rows, cu_in, cu_out), sizes
            ),
        ),
        Operator(
            "merge_tokens",
            _merge_tokens,
            defined.merge_tokens,
            _merge_tokens_terms,
            public=lambda x, slot, sizes, rows, cu_in, cu_out: bk.merge_tokens(
                x, _plan(slot, rows, cu_in, cu_out), sizes
            ),
        ),
        Operator(
            "merge_tokens_backward",
            _merge_tokens_backward,
            defined.merge_tokens_backward,
            _merge_tokens_backward_terms,
        ),
    )
}

PUBLIC = [name for name, operator in OPERATORS.items() if operator.public]
WITH_OUT = [name for name, operator in OPERATORS.items() if operator.has_out]


def sample(name: str, tokens: int, d: int, seed: int = 0) -> tuple:
    """The arguments that a seed stands for."""
    return OPERATORS[name].sample(Picks(hash_of(name, tokens, d, seed)), tokens, d)


def hash_of(name: str, *numbers: int) -> list[int]:
    """A seed for each operator and size, the same in every process (unlike hash())."""
    return [sum(map(ord, name)), *numbers]
