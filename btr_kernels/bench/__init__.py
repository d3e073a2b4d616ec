"""The kernels against the PyTorch baseline, other implementations and the limits of this machine.

`python -m btr_kernels.bench --help` is the command. The parts can be used on their own:

    >>> from btr_kernels.bench import CASES, Limits, Settings, measure
    >>> result = measure(CASES[0], Limits(threads=1), Settings(seconds_per_case=0.5))
    >>> result.vs_baseline, result.percent_of_limit

`cases` holds the table, a module a family (a new operator is a new row there), `peers` the other implementations,
`timing` the loop, `machine` the measured limits, `report`, `plots` and `roofline` what comes out.
"""

from .case import Case, Inputs, Peer, Target, Traffic, Verdict, WrongResult
from .cases import CASES, FAMILIES, OPERATORS
from .machine import Limit, Limits
from .measure import Result, Settings, measure
from .report import Report

__all__ = [
    "CASES",
    "FAMILIES",
    "OPERATORS",
    "Case",
    "Inputs",
    "Limit",
    "Limits",
    "Peer",
    "Report",
    "Result",
    "Settings",
    "Target",
    "Traffic",
    "Verdict",
    "WrongResult",
    "measure",
]
