"""The CUDA kernels of the projections, a source for each kind and type of weight (csrc/cuda/project_*.cu): what their
machine code must contain, and what they take of a multiprocessor. csrc/cuda/unpack_matmul.cu launches them."""

from __future__ import annotations

from typing import NamedTuple

from .rows import ASYNC_128, FLOAT8_TILES, INT_TILES, STORES_128


class Kernel(NamedTuple):
    """Shared memory that a block is launched with, the least warps of a multiprocessor, and threads of a block."""

    shared: int
    warps: int
    threads: int


class Source(NamedTuple):
    """Attributes:
    kernel: what the names of its kernels contain.
    patterns: that each of them must contain.
    architectures: on which they are tested, of those that they are for.
    kernels: by another part of the name.
    """

    kernel: str
    patterns: tuple[str, ...]
    architectures: tuple[str, ...]
    kernels: dict[str, Kernel]


#: Copies by Hopper's tensor memory accelerator, and the barriers that count their bytes.
_ON_HOPPER = (r"^UTMALDG\.3D", r"^SYNCS\.PHASECHK\S*TRYWAIT", STORES_128)
_ON_AMPERE = (ASYNC_128, r"^LDSM\.16\.M88\.4", STORES_128)
_REGISTERS = r" R\d+, R\d+, gdesc"


def _staged(columns: int) -> int:
    """`finish`: 16 rows of sums of a warp."""
    return 16 * (columns + 4) * 4


def _hopper(consumers: int, sets: int, columns: int, stages: int, blocks: int) -> tuple[str, Kernel]:
    shared = 1024 + stages * (columns * 128 + 16) + 4 * consumers * _staged(columns)
    warps = 4 * (consumers + 1)
    return f"TileILi{consumers}ELi{sets}ELi{columns}E", Kernel(shared, blocks * warps, 32 * warps)


def _ampere(down: int, across: int, columns: int, blocks: int) -> tuple[str, Kernel]:
    warps = down * across
    shared = max(3 * across * columns * 128, warps * _staged(columns))
    return f"WarpTileILi{down}ELi{across}ELi{columns}E", Kernel(shared, blocks * warps, 32 * warps)


def _few(vectors: int, bit_bytes: int, splits: tuple[bool, ...]) -> dict[str, Kernel]:
    kernels = {}
    for tiles in (1, 2, 4, 8):
        for split in splits:
            sets, warps = (1 if tiles <= 2 or split else 2), (8 if tiles <= 2 else 4)
            ring = 4 * 32 * warps * (2 * sets * vectors * 16 + tiles * bit_bytes)
            sums = warps * 8 * tiles * (16 * sets + 1) * 4
            kernels[f"FewTileILi{tiles}ELb{int(split)}E"] = Kernel(max(ring, sums), 2 * warps, 32 * warps)
    return kernels


_HOPPER_TILES = dict((_hopper(2, 2, 128, 8, 1), _hopper(2, 1, 128, 6, 1), _hopper(1, 1, 64, 6, 2)))
_AMPERE_TILES = dict((_ampere(4, 2, 64, 1), _ampere(2, 2, 32, 2)))


def _on_hopper(instruction: str) -> Source:
    return Source("project_hopper", (instruction, *_ON_HOPPER), ("sm_90a",), _HOPPER_TILES)


def _on_ampere(instruction: str) -> Source:
    return Source("project_ampere", (instruction, *_ON_AMPERE), ("sm_80",), _AMPERE_TILES)


def _of_few(instruction: str, architectures: tuple[str, ...], vectors: int, bit_bytes: int, *splits: bool) -> Source:
    """`splits`: whether it is multiplied as terms, or may be either way."""
    return Source("project_few", (instruction, ASYNC_128), architectures, _few(vectors, bit_bytes, splits))


_BFLOAT16, _HALF = r"^HMMA\.16816\.F32\.BF16 ", r"^HMMA\.16816\.F32 "
SOURCES = {
    "project_hopper_bf16": _on_hopper(r"^HGMMA\S*x16\.F32\.BF16" + _REGISTERS),
    "project_hopper_f16": _on_hopper(r"^HGMMA\S*x16\.F32" + _REGISTERS),
    "project_hopper_i8": _on_hopper(INT_TILES["90"]),
    "project_hopper_e4m3": _on_hopper(FLOAT8_TILES),
    "project_ampere_bf16": _on_ampere(_BFLOAT16),
    "project_ampere_f16": _on_ampere(_HALF),
    "project_ampere_i8": _on_ampere(INT_TILES["80"]),
    "project_few_f32": _of_few(_BFLOAT16, ("sm_80",), 2, 4, True),
    "project_few_bf16": _of_few(_BFLOAT16, ("sm_80", "sm_90a"), 1, 4, False, True),
    "project_few_f16": _of_few(r"^HMMA\.16816\.F32", ("sm_90a",), 1, 4, False, True),
    "project_few_i8": _of_few(INT_TILES["80"], ("sm_80", "sm_90a"), 1, 8, False),
    "project_few_e4m3": _of_few(_HALF, ("sm_90a",), 1, 8, False),
    "weight_terms": Source("split_rows", (STORES_128,), ("sm_80",), {"rows": Kernel(0, 32, 256)}),
}
