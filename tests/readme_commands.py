"""Runs every command and example of a Markdown file, in order, in one empty directory: `make readme`.

    python tests/readme_commands.py README.md

Blocks marked `bash` are run line by line, blocks marked `python` as programs. What CI runs by itself is left out, and
measurements that take minutes run with small sizes instead: both are listed here and nowhere else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = ("git clone", "cd ", "make ", "pip install")
# Programs that measure for minutes, and what makes them quick.
QUICK = {
    "python -m btr_kernels.bench": "--quick --seconds-per-case 0.05",
    "btr bench": "--shape tiny --passages 4 --passage-length 32 --new-tokens 2 --repeats 1",
    "btr make-facts": "--train 16 --dev 4",
    "btr train": "--steps 2 --batch-size 4",
    "python -m pytest benchmarks": "--benchmark-disable -k pack_bits",
}
TIMEOUT_SECONDS = 300

_BLOCK = re.compile(r"^```(?P<language>bash|python)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """What to print and what to run, for each command line and each Python example."""
    for block in _BLOCK.finditer(text):
        if block["language"] == "python":
            yield "python example:\n" + block["body"], [sys.executable, "-c", block["body"]]
            continue
        for line in block["body"].replace("\\\n", " ").splitlines():
            line = re.sub(r"\s{2,}#.*", "", line).strip()
            if not line or line.startswith("#") or line.startswith(LEFT_OUT):
                continue
            for program, options in QUICK.items():
                if line.startswith(program):
                    line = f"{line} {options}"
            yield line, ["bash", "-c", line]


def main() -> int:
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="btr-readme-") as directory:
        # `benchmarks` and the sources are where a reader of the README has them.
        for name in ("benchmarks", "btr_kernels", "tests", "pyproject.toml"):
            (Path(directory) / name).symlink_to(ROOT / name)
        for shown, command in commands(text):
            start = time.monotonic()
            result = subprocess.run(
                command, cwd=directory, env={**os.environ, "PATH": path}, timeout=TIMEOUT_SECONDS,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            ok = result.returncode == 0
            passed, failed = passed + ok, failed + (not ok)
            print(f"{'ok' if ok else 'FAILED'} ({time.monotonic() - start:.1f} s): {shown}")
            if not ok:
                print(result.stdout)
    if not passed:
        print("no command found", file=sys.stderr)
        return 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
