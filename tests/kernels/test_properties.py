"""Every operator on every backend against its NumPy definition: shapes, strides, dtypes and values from Hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from .cases import OPERATORS
from .hypothesis_picks import HypothesisPicks
from .implementations import has, implementations, running


@pytest.mark.parametrize("name", OPERATORS)
@given(data=st.data())
def test_result_is_as_defined_for_any_shape_stride_and_value(name, data):
    operator = OPERATORS[name]
    tokens, d = data.draw(st.integers(0, 20), label="tokens"), data.draw(st.integers(1, 140), label="d")
    args = operator.sample(HypothesisPicks(data.draw), tokens, d)
    expected = operator.expect(args)
    for implementation in implementations():
        if has(implementation, name):
            note(f"on {implementation}")
            with running(implementation):
                expected.check(operator(*args))
