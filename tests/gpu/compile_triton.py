"""Worker: compiles the Triton kernels that the examples of `rows.py` launch, for GPUs that need not be there.

`python -m gpu.compile_triton 80 90` prints {operator: {architecture: [for each example: [[kernel, instructions] of
each launch]]}}. With --every-configuration, of all that the kernels could choose from instead of the first.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import btr_kernels as bk
from btr_kernels.backends import triton as backend
from btr_kernels.backends.triton import tuning

from .machine_code import kernels
from .rows import ROWS

_POINTER = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")


def launches(name: str, args: tuple) -> list[tuple]:
    """(kernel, arguments by name, options) of every launch that an operator makes; nothing runs."""
    recorded = []

    def record(self, *args, grid, warmup, **kwargs):
        options = {k: kwargs.pop(k) for k in _OPTIONS if k in kwargs}
        recorded.append((self, {**dict(zip(self.arg_names, args, strict=False)), **kwargs}, options))

    with bk.use_backend("reference"):
        results = getattr(torch.ops.btr, name)(*args)
    run, JITFunction.run = JITFunction.run, record
    try:
        backend.kernel(name)(*args, *(results if isinstance(results, tuple) else (results,)))
    finally:
        JITFunction.run = run
    return recorded


def launch_all(kernel: str, configs, key: tuple, launch, device: torch.device) -> None:
    for config in configs:
        launch(**config)


def specialised(kernel: JITFunction, arguments: dict) -> ASTSource:
    """What a launch would compile: None, 1 and constexpr parameters are constants, multiples of 16 known to be so."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        is_tensor = isinstance(value, torch.Tensor)
        fixed = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (not is_tensor and not fixed and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _POINTER[value.dtype] if is_tensor else "i32" if abs(value) < 2**31 else "i64"
        if not fixed and (value.data_ptr() if is_tensor else value) % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def disassembled(cubin: bytes) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        (opcodes,) = kernels(path).values()
    return opcodes


def main() -> None:
    report: dict = {name: {} for name in ROWS}
    architectures = [argument for argument in sys.argv[1:] if argument.isdigit()]
    if "--every-configuration" in sys.argv:
        tuning.run = launch_all
    for architecture in architectures:
        target = GPUTarget("cuda", int(architecture), 32)
        tuning.architecture = lambda device, chosen=int(architecture): chosen
        for name, row in ROWS.items():
            report[name][architecture] = examples = []
            for example in row.examples():
                examples.append([])
                if int(architecture) < example.capability:
                    continue
                for kernel, arguments, options in launches(name, example.args):
                    compiled = triton.compile(specialised(kernel, arguments), target=target, options=options)
                    examples[-1].append((kernel.fn.__name__, disassembled(compiled.asm["cubin"])))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
