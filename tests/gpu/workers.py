"""Runs the worker modules of this directory, each in a process of its own.

Whether Triton interprets kernels is decided when it is imported, so one process cannot both interpret and compile,
and the choice must not leak into the other tests of the session.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent


def run(module: str, *arguments: str, interpret: bool = False, seconds: float = 600) -> dict:
    """The JSON that `python -m gpu.<module> arguments` prints as its last line."""
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "BTR_BACKEND")}
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    if interpret:
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", f"gpu.{module}", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds, cwd=TESTS)
    if done.returncode != 0:
        tail = done.stdout[-2000:] + done.stderr[-6000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    return json.loads(done.stdout.splitlines()[-1])
