"""What bounds the GPU kernels on bits, by arithmetic for an H200: no GPU is asked.

    python benchmarks/gpu_bits_limits.py

prints the table of benchmarks/notes/cuda-bits.md: for the rows of `make gpu` the time that their bytes take at the copy
bandwidth and, where the CUDA kernels compare by binary tensor-core instructions, the time that those take.
"""

from __future__ import annotations

from btr_kernels.bench.gpu.rows import Row, all_rows

#: Of an H200: bytes/s (read and written) of a copy, measured on one; multiprocessors; their clock, a guess.
COPY, PROCESSORS, CLOCK = 4.3e12, 132, 1.7e9
#: Multiply-adds of single bits that a multiprocessor does a cycle: what NVIDIA documents for an A100 (4992 TOPS). For
#: Hopper it documents none.
BITS = 4 * 4096
#: A PCI Express 5.0 link of 16 lanes, bytes/s one way, as documented.
BUS = 63e9
COMPARED = {"match_tokens", "hamming_distance", "hamming_topk"}
PROJECTED = ("unpack_matmul", "unpack_geglu")


def line(row: Row) -> str:
    by_bytes = row.bytes / COPY
    by_bits = row.operations / 2 / (BITS * PROCESSORS * CLOCK) if COMPARED & set(row.operators) else None
    cells = [f"{by_bytes * 1e6:.1f}", "-" if by_bits is None else f"{by_bits * 1e6:.1f}"]
    if row.operators == ("restore_bits",):
        d = row.size
        rows = row.bytes / (2 * d + d / 8)  # bfloat16 states and their bits
        cells[0] += f", by the bus {rows * d / 8 / BUS * 1e6:.1f}"
    return f"| {row.name} | {' | '.join(cells)} |"


def main() -> None:
    print("| row | bytes us | binary instructions us |\n| --- | --: | --: |")
    for row in all_rows():
        if not row.operators[0].startswith(PROJECTED):
            print(line(row))


if __name__ == "__main__":
    main()
