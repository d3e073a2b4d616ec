"""What the CUDA kernels of `unpack_matmul` are expected to do on an H200, by arithmetic: no GPU is asked.

    python benchmarks/gpu_projection_limits.py

prints the tables of benchmarks/notes/cuda.md: for the projections of a reader the two limits, bytes and operations, the
tile that csrc/cuda/tiles.cuh chooses and the part of the longer limit that it should reach.
"""

from __future__ import annotations

from typing import NamedTuple

#: Of an H200: multiprocessors, bytes/s (read and written) of a copy, and operations/s of a bfloat16 matmul on random
#: data, both measured on one; 8-bit types are assumed to be twice as fast, as documented.
PROCESSORS, COPY, BFLOAT16 = 132, 4.3e12, 788e12
#: Bytes of a weight, of a result, and multiplications at the bfloat16 rate that one takes. "fast" of float32 costs what
#: bfloat16 does.
WEIGHTS = {"bfloat16": (2, 2, 1.0), "int8": (1, 2, 0.5), "float32": (4, 4, 3.0)}
#: Name, channels, columns of the weight: the first joint layer of a reader, projections that share bits concatenated.
PROJECTIONS = (
    ("base, q k v", 768, 2304, False),
    ("base, gated", 768, 4096, True),
    ("large, q k v", 1024, 3072, False),
    ("large, gated", 1024, 5632, True),
)
#: Tokens: 10 x 128 and 40 x 200 of which half are kept, and the latter for eight questions at a time.
TOKENS = (640, 4000, 32000)
#: Of the tensor cores' rate, what a large tile keeps busy: the rest is the start of a block and what is not hidden of
#: the end of its tiles. A guess.
BUSY = 0.92


class Tile(NamedTuple):
    name: str
    tokens: int
    columns: int
    resident: int
    rate: float


#: csrc/cuda/tiles.cuh.
TILES = (Tile("large", 256, 128, 1, 1.0), Tile("middle", 128, 128, 1, 0.9), Tile("small", 64, 64, 2, 0.55))


def rounds(tile: Tile, tokens: int, columns: int) -> int:
    tiles = -(-tokens // tile.tokens) * -(-columns // tile.columns)
    return -(-tiles // (PROCESSORS * tile.resident))


def cost(tile: Tile, tokens: int, columns: int) -> float:
    """Multiplications that the slowest multiprocessor has time for, a channel."""
    return rounds(tile, tokens, columns) * tile.resident * tile.tokens * tile.columns / tile.rate


def limits(weight: str, tokens: int, d: int, columns: int, gated: bool) -> tuple[float, float]:
    """Seconds that bytes and operations take at least."""
    each, result, multiplications = WEIGHTS[weight]
    moved = tokens * d / 8 + each * columns * d + result * tokens * (columns // 2 if gated else columns)
    return moved / COPY, multiplications * 2 * tokens * columns * d / BFLOAT16


def chosen(tokens: int, columns: int) -> tuple[Tile, float]:
    """The tile, and the part of the operations' limit that it should reach: the result is cut into whole tiles, those
    into rounds of as many as run at a time."""
    tile = min(TILES, key=lambda tile: cost(tile, tokens, columns))
    return tile, BUSY * tokens * columns / PROCESSORS / cost(tile, tokens, columns)


def many() -> None:
    kinds = " | ".join(f"{name}: bytes, operations us" for name in WEIGHTS)
    print(f"| projection | tokens | {kinds} | tile | rounds | expected |")
    print("| --- | --: |" + " --: |" * len(WEIGHTS) + " --- | --: | --: |")
    for name, d, columns, gated in PROJECTIONS:
        for tokens in TOKENS:
            both = [limits(weight, tokens, d, columns, gated) for weight in WEIGHTS]
            times = " | ".join(f"{by_bytes * 1e6:.1f}, {by_operations * 1e6:.1f}" for by_bytes, by_operations in both)
            tile, part = chosen(tokens, columns)
            cells = f"{times} | {tile.name} | {rounds(tile, tokens, columns)} | {part:.0%}"
            print(f"| {name} {d} -> {columns} | {tokens} | {cells} |")


def few() -> None:
    """Up to 64 tokens the weight alone counts; a block has 16 columns (32 for more than 16 tokens)."""
    print("\n| projection | bfloat16 us | int8 us | blocks of 16 columns | of 32 |\n| --- | --: | --: | --: | --: |")
    for name, d, columns, _ in PROJECTIONS:
        times = [each * columns * d / COPY * 1e6 for each in (2, 1)]
        print(f"| {name} {d} -> {columns} | {times[0]:.2f} | {times[1]:.2f} | {columns // 16} | {columns // 32} |")


if __name__ == "__main__":
    many()
    few()
