"""Hypothesis budgets (HYPOTHESIS_PROFILE=ci or full) and the option --slow."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

_COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.register_profile("ci", max_examples=25, derandomize=True, **_COMMON)
settings.register_profile("full", max_examples=1000, **_COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run slow tests too, as HYPOTHESIS_PROFILE=full does")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow") or PROFILE == "full" or "slow" in config.getoption("-m"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
