"""The checks of `launches.py`, which only a GPU can pass."""

from __future__ import annotations

import pytest
import torch

from . import launches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.fixture
def call(request):
    if reason := request.param.why_not():
        pytest.skip(reason)
    return request.param


every_call = pytest.mark.parametrize("call", launches.CALLS, ids=str, indirect=True)


@pytest.mark.parametrize("check", launches.EVERY, ids=lambda check: check.__name__)
@every_call
def test_every_call(call, check):
    check(*call)


@pytest.mark.slow
@pytest.mark.parametrize("call", [c for c in launches.CALLS if c.backend == "triton"], ids=str, indirect=True)
def test_every_configuration(call):
    launches.every_configuration_gives_it(*call)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_call
def test_runs_on_the_device_of_its_arguments(call):
    launches.runs_on_the_device_of_its_arguments(*call)


@pytest.mark.parametrize("check", launches.ONCE, ids=lambda check: check.__name__)
def test_once(check):
    check()
