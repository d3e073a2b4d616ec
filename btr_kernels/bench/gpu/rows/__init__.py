"""The rows of the GPU table, a module a family, as in `btr_kernels.bench.cases`.

A row runs on any device, so that tests run small ones on the CPU.
"""

from __future__ import annotations

import torch

from ...case import Target
from .bits import masked, normalised, pack, restored, unpack
from .hamming import distances, nearest
from .matmul import geglu, project, project_gradients
from .merging import averaged, matched
from .row import CUBLAS, CUBLAS_FLOAT, UNPACK_CUBLAS, Inputs, Row, Run, sets_past

__all__ = ["Inputs", "Row", "Run", "all_rows", "pack", "project", "sets_past"]


def all_rows() -> list[Row]:
    """Every row of the table, those with targets first."""
    bf16, fp32 = torch.bfloat16, torch.float32
    plain = (Target(1.0, 1.1, (CUBLAS,)), Target(2, 3, (UNPACK_CUBLAS,)))
    narrow, few = (Target(1.5, 1.9, (CUBLAS,)),), (Target(1.2, 1.8, (CUBLAS,)),)
    sizes = ((8192, 2048, 768), (8192, 2816, 1024), (65536, 2048, 768))
    rows = [project("plain", bf16, *size, plain) for size in sizes]
    rows += [project(precision, bf16, *size, narrow) for precision in ("int8", "fp8") for size in sizes[:2]]
    rows += [project("plain", fp32, *sizes[0], (Target(3, 4, (CUBLAS_FLOAT,)),))]
    rows += [project("fast", fp32, *sizes[0], (Target(6, 10, (CUBLAS_FLOAT,)),))]
    rows += [project("int8", bf16, m, 2048, 768, few) for m in (1, 8, 16, 64)]
    rows += [project("int8", bf16, 1, 768, 768, few), project("int8", bf16, 8, 5632, 1024, few)]
    rows += [pack(dtype, 262144, 768) for dtype in (bf16, fp32)]
    rows += [unpack(dtype, 262144, 768) for dtype in (bf16, fp32)]
    rows += [normalised(norm, bf16, 262144, 768) for norm in ("rms", "layer")]
    rows += [masked(operator, 65536, 768, 216) for operator in ("expand_bits", "compress_bits")]
    sizes = ((40, 128, True), (40, 512, False), (320, 256, False), (1280, 128, True))
    rows += [matched(b, n, 768, n // 2, compiler) for b, n, compiler in sizes]
    rows += [geglu("plain", 8192, 2048, 768), geglu("plain", 8192, 2816, 1024), geglu("int8", 8192, 2048, 768)]
    # The reader's projections, for which notes/cuda.md has predictions.
    rows += [project("plain", bf16, m, *of, ()) for of in ((2304, 768), (3072, 1024)) for m in (640, 4000, 32000)]
    rows += [project("plain", bf16, 8, 2048, 768, ()), project_gradients(bf16, 8192, 2048, 768)]
    rows += [distances(2048, 2048, 768), distances(16384, 16384, 768), nearest(1024, 65536, 768, 16)]
    return [*rows, averaged(bf16, 40, 256, 768), restored(bf16, 8 * 40 * 64, 768)]
