"""Every operator on every backend against its NumPy definition, at the boundaries of words and tiles."""

from __future__ import annotations

from functools import cache

import pytest

from .cases import OPERATORS, sample
from .implementations import has

CHANNELS = (1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 384, 768, 1000, 1024)
TOKENS = (0, 1, 2, 3, 15, 16, 17, 64, 65)


@cache
def _expected(name: str, tokens: int, d: int):
    args = sample(name, tokens, d)
    return args, OPERATORS[name].expect(args)


@pytest.mark.parametrize("d", CHANNELS)
@pytest.mark.parametrize("name", OPERATORS)
def test_result_is_as_defined(name, d, implementation):
    if not has(implementation, name):
        pytest.skip(f"{implementation} has no kernel for {name}")
    for tokens in TOKENS:
        args, expected = _expected(name, tokens, d)
        expected.check(OPERATORS[name](*args))
