"""The configurations of `project`: the best guess first, from which `tuning` chooses by timing.

For many tokens wide tiles use each expanded sign for many columns and each loaded weight for many tokens. For few, the
weight is read about once: tiles of few columns, of whose channels each warp has a slice (`few.py`). Where columns alone
give too few programs, the channels are also split among SPLIT of them, whose sums a second kernel adds in order.
"""

from __future__ import annotations

import torch
import triton

from ...reference.matmul import BLOCK
from . import tuning
from .common import INTERPRET, power_of_two

#: Up to this many tokens the weight is read about once, by programs with few columns each.
FEW = 64
#: Bytes of weight that a program reads in about the time that a second kernel takes: to split less is no first guess.
_ALONE = 128 << 10

_MANY = {
    90: (
        {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},  # hundreds of tokens: more programs
    ),
    80: (
        {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3},
        {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 64, "BK": 64, "num_warps": 4, "num_stages": 4},
    ),
    0: ({"BM": 128, "BN": 128, "BK": 512, "num_warps": 4, "num_stages": 1},),
}
#: The same for 8 bits a weight.
_MANY_BYTES = {
    90: (
        {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 128, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},
    ),
    80: (
        {"BM": 128, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},
    ),
    0: ({"BM": 128, "BN": 128, "BK": 512, "num_warps": 4, "num_stages": 1},),
}
#: The same with factors for blocks of channels, whose sums take as many registers as the result.
_MANY_BLOCKS = {
    90: ({"BM": 128, "BN": 128, "BK": BLOCK, "num_warps": 8, "num_stages": 3},),
    80: ({"BM": 64, "BN": 64, "BK": BLOCK, "num_warps": 4, "num_stages": 3},),
    0: ({"BM": 128, "BN": 128, "BK": BLOCK, "num_warps": 4, "num_stages": 1},),
}
#: Up to 16 tokens: 16 columns a program, the fewest that tensor cores take, or 32, for which a sign serves twice.
_ROWS = {
    80: (
        {"BN": 16, "BK": 64, "SLICES": 4, "num_warps": 4, "num_stages": 3},
        {"BN": 16, "BK": 64, "SLICES": 8, "num_warps": 8, "num_stages": 2},
        {"BN": 32, "BK": 64, "SLICES": 4, "num_warps": 4, "num_stages": 3},
    ),
    0: ({"BN": 128, "BK": 64, "SLICES": 2, "num_warps": 4, "num_stages": 1},),
}
#: Up to FEW tokens: more columns a warp, since each needs more signs.
_SOME = {
    80: (
        {"BN": 32, "BK": 64, "SLICES": 4, "num_warps": 4, "num_stages": 3},
        {"BN": 16, "BK": 64, "SLICES": 4, "num_warps": 4, "num_stages": 3},
    ),
    0: ({"BN": 128, "BK": 64, "SLICES": 2, "num_warps": 4, "num_stages": 1},),
}
#: Over 32 tokens on Hopper: one instruction takes them all, and the weight as its second operand.
_SOME_WIDE = ({"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},)


def configurations(
    m: int, n: int, d: int, itemsize: int, terms: int | None, block_factors: bool, gated: bool, device: torch.device
) -> list[tuning.Config]:
    """For m tokens and a weight (n, d) of `itemsize` bytes a number that is multiplied as it is or, if `terms` says
    so, as a sum of terms."""
    if m > FEW:
        table = _MANY_BLOCKS if block_factors else _MANY_BYTES if itemsize == 1 else _MANY
        found = [{"SPLIT": 1, **config} for config in tuning.for_device(table, device)]
    else:
        tiles = [
            {"BM": max(8, power_of_two(m)), **config}
            for config in tuning.for_device(_ROWS if m <= 16 else _SOME, device)
        ]
        if block_factors:  # a slice has one factor
            tiles = [{**tile, "BK": BLOCK} for tile in tiles]
        elif terms:  # float32 values and their terms take registers
            tiles = [{**tile, "BK": tile["BK"] // 2} for tile in tiles]
        elif itemsize == 1:  # as many bytes a step
            tiles = [{**tile, "BK": 2 * tile["BK"]} for tile in tiles]
        if m > 32 and not terms and tuning.architecture(device) == 90:
            tiles = [*_SOME_WIDE, *tiles]
        found = [{"SPLIT": split, **tile} for tile in tiles for split in _splits(tile, n, d, itemsize, device)]
    if gated:  # combining the halves takes registers
        found = [config for config in found if config["BN"] <= 128]
    return found


def _splits(tile: tuning.Config, n: int, d: int, itemsize: int, device: torch.device) -> list[int]:
    """Into how many parts the channels may be split, likeliest first: one, and so many that every processor has a
    program."""
    programs = triton.cdiv(n, tile["BN"])
    parts = min(triton.cdiv(d, tile["BK"] * tile.get("SLICES", 1)), triton.cdiv(tuning.processors(device), programs))
    split_first = INTERPRET or tile["BN"] * d * itemsize > _ALONE
    return sorted({1, parts}, reverse=split_first)
