"""The fixture `implementation`: a test that takes it runs on every backend and instruction set there is."""

from __future__ import annotations

import pytest
import torch

from .implementations import implementations, running


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(params=implementations(), ids=str)
def implementation(request):
    """One backend (and instruction set); operators called in the test run on it."""
    with running(request.param):
        yield request.param
