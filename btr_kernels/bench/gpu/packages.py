"""Kernels of other packages, where they are installed: rows of their own, each package in a process of its own.

    python -m btr_kernels.bench.gpu.packages gemlite --limits '{"copy": 4e12, "bfloat16": 7e14, "float32": 5e13}'

None of them could be run where this was written. Some compile for minutes or need tools that are not there: their
process has a time limit, and whatever goes wrong in it is said in the report in place of a figure.

What gemlite and BitBLAS multiply are float activations by low-bit *weights*; here the tokens have one bit and the
weight is float. Y = X @ W.T is computed as Y.T = W @ X.T, the weight as their activations and the tokens' bits as
their 1-bit weight. They have that weight packed in advance, since it does not change in their use; ours comes as
`pack_bits` left it. Bringing tokens into their layout and the result back into ours is therefore *not* timed: they are
given more than they would find in a reader, and the ratio to them is one from below. FlashInfer has no such
multiplication; it has float8 ones, for which the tokens are unpacked in advance, and a packing of booleans, to which
the comparison that makes them is added.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from ... import reference, use_backend
from .measure import measure
from .rows import Inputs, Row, Run, pack, project

#: Tokens, outputs and channels: many tokens, and the fewest that gemlite takes.
_SIZES = ((8192, 2048, 768), (128, 2048, 768))
#: Relative error of a peer: what float8 leaves. A wrong use of it is off by about 1.
_TOLERANCE = 4e-2


def _with_peer(row: Row, name: str, prepare: Callable[[Inputs], None], run: Run, result: Run) -> Row:
    """The row with this peer alone; `prepare` makes what it needs of each set of inputs, `result` turns what `run`
    gives into the row's result, by which the peer is checked before it is timed."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        inputs = row.make(generator, device)
        prepare(inputs)
        return inputs

    unchecked = [True]

    def checked(inputs: Inputs) -> object:
        found = run(inputs)
        if unchecked:
            expected, got = row.expected(inputs).double(), result(inputs).double()
            error = float(torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected))
            if not error <= _TOLERANCE:
                raise ValueError(f"{name} gives another result: error {error:.2g}")
            unchecked.clear()
        return found

    return replace(row, name=f"{row.name}, {name}", make=make, peers={name: checked}, targets=())


def _gemlite() -> list[Row]:
    """Its int32 words hold 32 bits of a token, as ours do, but tokens are next to each other. A bit b counts
    (b - 1/2) * 2. Sums in float32."""
    from gemlite.core import DType, GemLiteLinear

    def rows(m: int, n: int, d: int) -> Row:
        def prepare(i: Inputs) -> None:
            i.layer = GemLiteLinear(
                1, group_size=d, in_features=d, out_features=m, input_dtype=DType.FP16, output_dtype=DType.FP16,
                acc_dtype=DType.FP32,
            )  # fmt: skip
            ones = (reference.signs(i.bits, d) > 0).to(torch.uint8)
            constant = i.weight.new_ones(m, 1)
            i.layer.pack(ones, 2.0 * constant, 0.5 * constant, None)

        def run(i: Inputs) -> torch.Tensor:
            return i.layer(i.weight)

        plain = project("plain", torch.float16, m, n, d, ())
        return _with_peer(plain, "gemlite 1-bit", prepare, run, lambda i: run(i).t())

    return [rows(*size) for size in _SIZES]


def _bitblas() -> list[Row]:
    """Bits that count 0 and 1, sums in float16: Y.T = 2 * (W @ bits.T) - sum(W), of which the product is timed."""
    import bitblas

    def rows(m: int, n: int, d: int) -> Row:
        multiply = bitblas.Matmul(
            bitblas.MatmulConfig(M=n, N=m, K=d, A_dtype="float16", W_dtype="uint1", accum_dtype="float16")
        )

        def prepare(i: Inputs) -> None:
            i.packed = multiply.transform_weight((reference.signs(i.bits, d) > 0).to(torch.int8))

        def result(i: Inputs) -> torch.Tensor:
            return (2 * run(i).float() - i.weight.float().sum(1, keepdim=True)).t()

        def run(i: Inputs) -> torch.Tensor:
            return multiply(i.weight, i.packed)

        return _with_peer(project("plain", torch.float16, m, n, d, ()), "bitblas uint1", prepare, run, result)

    return [rows(*size) for size in _SIZES]


def _flashinfer() -> list[Row]:
    """float8 with one factor for all of a matrix, where ours has one for each output; packing of x >= 0."""
    import flashinfer

    m, n, d = _SIZES[0]

    def prepare(i: Inputs) -> None:
        i.signs = reference.signs(i.bits, d).to(torch.float8_e4m3fn)[None]
        largest = i.weight.abs().amax().float()
        i.stored = (i.weight.float() * (448 / largest)).to(torch.float8_e4m3fn).t()[None]  # column-major
        i.factors = (largest.new_ones(()), largest / 448)

    def multiply(i: Inputs) -> torch.Tensor:
        return flashinfer.bmm_fp8(i.signs, i.stored, *i.factors, torch.bfloat16, out=i.peer_out[None])

    fp8 = project("fp8", torch.bfloat16, m, n, d, ())
    packing = pack(torch.bfloat16, 32 * m, d)

    def packbits(i: Inputs) -> torch.Tensor:
        return flashinfer.quantization.packbits((i.x >= 0).flatten(), bitorder="little")

    return [
        _with_peer(fp8, "flashinfer bmm_fp8, unpacked before", prepare, multiply, lambda i: multiply(i)[0]),
        _with_peer(packing, "flashinfer packbits", lambda i: None, packbits, lambda i: packbits(i).view_as(i.out)),
    ]


#: Name of the module -> its rows; the name of its distribution, where that is another.
PACKAGES: Mapping[str, Callable[[], list[Row]]] = {
    "gemlite": _gemlite, "bitblas": _bitblas, "flashinfer": _flashinfer,
}  # fmt: skip
DISTRIBUTIONS = {"flashinfer": "flashinfer-python"}


def run(package: str, limits: Mapping[str, float], backend: str, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The rows of a package, measured within some seconds by a process of their own; and what went wrong, if it did."""
    if find_spec(package) is None:
        return [], "not installed"
    command = [sys.executable, "-m", "btr_kernels.bench.gpu.packages", package, "--limits", json.dumps(dict(limits))]
    try:
        done = subprocess.run([*command, "--backend", backend], capture_output=True, text=True, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return [], "out of time"
    if done.returncode != 0:
        return [], "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    found = json.loads(done.stdout.splitlines()[-1])
    return found["rows"], "; ".join(found["errors"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("--limits", type=json.loads, required=True, help="JSON: rates measured before")
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    found: dict[str, list] = {"rows": [], "errors": []}
    for row in PACKAGES[arguments.package]():
        try:
            with use_backend(arguments.backend):
                found["rows"].append(measure(row, device, arguments.limits))
        except Exception as error:  # the next row may work
            found["errors"].append(f"{row.name}: {type(error).__name__}: {error}")
        torch.cuda.empty_cache()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
