"""One row per operator with GPU kernels: what a new kernel adds here to get all the tests of this directory.

Results are tested against the operator's row in `tests/kernels/cases.py`, which also samples the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOAT, HALF, BRAIN = FLOATS
INTEGERS = (torch.int32, torch.int64)

#: A pattern that the instructions of a kernel must contain, or one for each architecture.
Pattern = str | Mapping[str, str]

#: Vectors of 16 bytes, whatever the cache hints between: the fast path of anything that memory bounds.
LOADS_128 = r"LDG\.E(\.\w+)*\.128\b"
ASYNC_128 = r"LDGSTS\.E(\.\w+)*\.128\b"
STORES_128 = r"STG\.E(\.\w+)*\.128\b"
#: Tensor cores with the first operand, the bits, in registers. Hopper's also take it from shared memory ("gdesc").
FLOAT_TILES = {"80": r"^HMMA\.16816", "90": r"^HGMMA\S* R\d+, R\d+, gdesc"}
FLOAT8_TILES = r"^QGMMA\S* R\d+, R\d+, gdesc"
INT_TILES = {"80": r"^IMMA\.16832\.S8\.S8", "90": r"^IGMMA\S*\.S8\.S8 R\d+, R\d+, gdesc"}
#: The tensor cores' instructions for few rows, on both architectures, which take both operands from registers.
FLOAT_ROWS, INT_ROWS = FLOAT_TILES["80"], INT_TILES["80"]
#: Tensor cores on single bits, both operands from registers.
BINARY_TILES = r"^BMMA\.168256\.AND\.POPC"


class Example(NamedTuple):
    """Arguments of the operator that take the fast path, and for each Triton kernel launched what it must contain."""

    args: tuple
    fast: Mapping[str, tuple[Pattern, ...]]
    #: Kernels that may not store to shared memory before they have multiplied: bits are expanded in registers.
    in_registers: tuple[str, ...] = ()
    #: The least compute capability, in tens.
    capability: int = 80


@dataclass(frozen=True)
class Row:
    """The kernels of an operator and what their fast paths must be made of.

    Attributes:
        examples: () -> one for each kind of machine code.
        dtypes: those that the arguments and results of its tests must have covered together.
        cuda: a pattern of the names of the CUDA kernels that are the fast path, and what each of them must contain; or
            the source of the launcher, if that launches kernels of other sources (`projections.py`).
        exact: whether results equal the reference's to the bit; else they are within the operator's tolerance.
        large: channels and tokens of larger tests, in which the grid strides or a passage takes several blocks.
        cases: arguments by name that take ways through the CUDA kernels which sampled ones do not; compared with the
            reference, exactly.
    """

    examples: Callable[[], list[Example]]
    dtypes: tuple[torch.dtype, ...]
    cuda: tuple[str, tuple[str, ...]] | str | None = None
    exact: bool = False
    large: Mapping[int, tuple[int, ...]] = field(default_factory=lambda: {520: (1000,), 131: (600,)})
    cases: Mapping[str, Callable[[], tuple]] = field(default_factory=dict)


def _bits(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.uint8)


def _pack_bits() -> list[Example]:
    return [
        Example((torch.ones(64, 768, dtype=dtype),), {"_pack_bits": (LOADS_128,)}) for dtype in (*FLOATS, torch.bool)
    ]


def _unpack_bits() -> list[Example]:
    ones = torch.ones(768)
    return [
        Example((_bits(64, 96), 768, ones, ones, torch.ones(64), dtype), {"_unpack_bits": (STORES_128,)})
        for dtype in FLOATS
    ]


def _restore_bits() -> list[Example]:
    return [
        Example((torch.ones(768), _bits(64, 96), dtype), {"_unpack_bits": (STORES_128,)}) for dtype in (FLOAT, BRAIN)
    ]


def _binarize() -> list[Example]:
    return [
        Example((torch.ones(64, 768, dtype=dtype), norm, 1e-6, True), {"_binarize": (LOADS_128,)})
        for dtype, norm in ((FLOAT, "layer"), (BRAIN, "rms"), (HALF, "none"))
    ]


def _sign_scale() -> list[Example]:
    return [
        Example(
            (torch.ones(64, 768, dtype=dtype), torch.ones(768), norm, 1e-6, "ste", 2.0),
            {"_sign_scale": (LOADS_128, STORES_128)},
        )
        for dtype, norm in ((FLOAT, "rms"), (BRAIN, "layer"))
    ]


def _sign_scale_backward() -> list[Example]:
    return [
        Example(
            (torch.ones(64, 768, dtype=dtype), torch.ones(64, 768, dtype=dtype), torch.ones(768), norm, 1e-6, *grad),
            {"_sign_scale_backward": (LOADS_128, STORES_128)},
        )
        for dtype, norm, grad in ((FLOAT, "rms", ("ste", 2.0)), (BRAIN, "layer", ("tanh", 1.0)))
    ]


def _compress_bits() -> list[Example]:
    masks = _bits(100, 96) + 1  # a channel of each byte
    arguments = (_bits(64, 96), torch.zeros(64, dtype=torch.int64), masks, 96)
    return [Example(arguments, {"_compress_bits": (LOADS_128, r"^(RED|ATOMG)\S*\.OR")})]


def _expand_bits() -> list[Example]:
    return [
        Example(
            (_bits(64, 27), torch.zeros(64, dtype=dtype), _bits(100, 96), _bits(100, 96)),
            {"_expand_bits": (LOADS_128, STORES_128)},
        )
        for dtype in INTEGERS
    ]


def _unpack_matmul() -> list[Example]:
    many, few, weight, epilogue = _bits(512, 96), _bits(8, 96), torch.ones(256, 768), (None, None)
    tiles, rows = (ASYNC_128, FLOAT_TILES, STORES_128), (ASYNC_128, FLOAT_ROWS)
    terms = {"_terms": (LOADS_128, STORES_128), "_project": tiles}
    return [
        *(Example((many, weight.to(t), None, *epilogue, t), {"_project": tiles}, ("_project",)) for t in (BRAIN, HALF)),
        Example((many, weight, None, *epilogue, FLOAT), terms, ("_project",)),
        Example((many, weight.to(BRAIN), torch.ones(768), torch.ones(256), torch.ones(512), BRAIN), terms),
        Example((few, weight.to(BRAIN), None, *epilogue, BRAIN), {"project_few": rows}, ("project_few",)),
        Example((few, weight, torch.ones(768), *epilogue, FLOAT), {"project_few": rows}),
        # Few columns and many channels, which are split among programs.
        Example(
            (_bits(3, 1024), torch.ones(64, 8192, dtype=BRAIN), None, *epilogue, BRAIN),
            {"project_few": (LOADS_128, FLOAT_ROWS), "_add_parts": ()},
        ),
        Example((_bits(20, 96), weight.to(BRAIN), None, *epilogue, BRAIN), {"project_few": rows}),
        Example((_bits(64, 96), weight.to(BRAIN), None, *epilogue, BRAIN), {"_project": tiles[:2]}, capability=90),
    ]


def _unpack_matmul_prepared() -> list[Example]:
    many, few, factors = _bits(512, 96), _bits(8, 96), torch.ones(1, 256)
    int8 = torch.ones(256, 768, dtype=torch.int8).t()  # (d, N) in the order that prepare_weight chooses on a GPU
    fast, blocks = torch.ones(768, 256, dtype=torch.int16), torch.ones(12, 256)
    return [
        Example(
            (many, int8, factors, "int8", None, None, BRAIN),
            {"_project": (ASYNC_128, INT_TILES, STORES_128)},
            ("_project",),
        ),
        Example(
            (few, int8, factors, "int8", None, None, BRAIN), {"project_few": (ASYNC_128, INT_ROWS)}, ("project_few",)
        ),
        Example(
            (many, int8.to(torch.float8_e4m3fn), factors, "fp8", None, None, BRAIN),
            {"_project": (ASYNC_128, FLOAT8_TILES, STORES_128)},
            ("_project",),
            capability=89,
        ),
        Example((many, int8.half(), factors, "fast", None, None, FLOAT), {"_project": (ASYNC_128, FLOAT_TILES)}),
        Example((many, fast, blocks, "fast", None, None, FLOAT), {"_terms": (), "_project": (ASYNC_128, FLOAT_TILES)}),
        Example((few, fast, blocks, "fast", None, None, FLOAT), {"project_few": (FLOAT_ROWS,)}),
        Example(
            (many, torch.ones(768, 256, dtype=BRAIN), None, "exact", None, None, BRAIN),
            {"_project": (FLOAT_TILES, STORES_128)},
        ),
        Example(
            (_bits(40, 96), int8, factors, "int8", None, None, BRAIN),
            {"_project": (ASYNC_128, INT_TILES)},
            capability=90,
        ),
    ]


def _whole_numbers(m: int, n: int, d: int, *dtypes: torch.dtype) -> tuple:
    """Arguments of `unpack_matmul`, of weights whose sums are exact."""
    generator = torch.Generator().manual_seed(m)
    bits = torch.randint(0, 256, (m, -(-d // 8)), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-100, 101, (n, d), generator=generator).to(dtypes[0])
    token_scale = 2.0 ** torch.randint(-3, 4, (m,), generator=generator)
    return bits, weight, None, torch.arange(float(n)), token_scale, dtypes[1]


def _bytes_prepared(m: int, n: int, d: int, out: torch.dtype) -> tuple:
    bits, weight, _, *epilogue, _ = _whole_numbers(m, n, d, torch.int8, out)
    return bits, weight.t(), torch.full((1, n), 0.5), "int8", *epilogue, out


#: Sizes that get large (two a block), middle and small tiles on GPUs of 114 to 132 processors, some cut off, and those
#: of few tokens.
#: Sampled weights of many channels hold a NaN or an infinity each, and show little.
TILED = {
    "large tiles": (3900, 1700, 72),
    "middle tiles": (900, 1700, 200),
    "small tiles": (150, 328, 520),
    **{f"{m} tokens": (m, 72, 1288) for m in (1, 12, 30, 64)},
}


def _unpack_matmul_backward() -> list[Example]:
    bits, weight, scale = _bits(512, 96), torch.ones(256, 768), torch.ones(768)
    tiles, finish = (ASYNC_128, FLOAT_TILES, STORES_128), (LOADS_128,)
    plain = {"_products": tiles, "_gradients": finish}
    return [
        Example((torch.ones(512, 256, dtype=t), bits, weight.to(t), scale, None, True, True), plain, ("_products",))
        for t in (BRAIN, HALF)
    ] + [
        Example(
            (torch.ones(512, 256), bits, weight, None, torch.ones(512), True, False),
            {"_terms": (), **plain},
            ("_products",),
        )
    ]


def _hamming_distance() -> list[Example]:
    return [
        Example((_bits(256, 96), _bits(256, 96)), {"_hamming_distance": (INT_ROWS, STORES_128)}, ("_hamming_distance",))
    ]


def _hamming_topk() -> list[Example]:
    return [
        Example((_bits(256, 96), _bits(256, 96), 4), {"_hamming_distance": (INT_ROWS, STORES_128)}),
        Example((_bits(1, 96), _bits(256, 96), 4), {"_few_rows": (LOADS_128, r"^POPC")}),
    ]


def _match_tokens() -> list[Example]:
    offsets = torch.arange(0, 513, 128)
    fast = {"_nearest": (INT_ROWS,), "_finish": (INT_ROWS,)}
    return [
        Example((_bits(512, 96), torch.full((4,), 64), None, offsets), fast),
        Example((_bits(4, 128, 96), torch.full((4,), 64), torch.full((4,), 100), None), fast, ("_nearest",)),
    ]


def _slots() -> torch.Tensor:
    return (torch.arange(128, dtype=torch.int32) // 2).repeat(4, 1)


def _merge_bits() -> list[Example]:
    return [Example((_bits(4, 128, 96), _slots(), None, 64, None, None), {"_sort": (), "_merge_bits": ()})]


def _merge_tokens() -> list[Example]:
    return [
        Example(
            (torch.ones(4, 128, 768, dtype=dtype), _slots(), None, 64, None, None),
            {"_sort": (), "_merge_tokens": (LOADS_128, STORES_128)},
        )
        for dtype in (FLOAT, BRAIN)
    ]


def _merge_tokens_backward() -> list[Example]:
    sizes = torch.full((4, 64), 2, dtype=torch.int32)
    return [
        Example(
            (torch.ones(4, 64, 768, dtype=dtype), _slots(), None, sizes, None, None),
            {"_merge_tokens_backward": (LOADS_128, STORES_128)},
        )
        for dtype in (FLOAT, BRAIN)
    ]


def _random_bits(*shape: int, values: int = 256) -> torch.Tensor:
    return torch.randint(values, shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.uint8)


def _topk_case(n: int, w: int, k: int) -> tuple:
    return _random_bits(3, w), _random_bits(n, w), k


def _match_case(lengths: tuple[int, ...], keep: int, packed: bool, w: int = 16) -> tuple:
    """Passages of these lengths; few distinct bytes, so that distances tie."""
    counts, kept = torch.tensor(lengths), torch.full((len(lengths),), keep)
    if packed:
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
        return _random_bits(sum(lengths), w, values=8), kept, None, offsets
    return _random_bits(len(lengths), max(lengths), w, values=8), kept, counts, None


def _merge_case(tokens: int, rows: int, w: int = 16) -> tuple:
    """Slots of no, one, two and many tokens, some of them outside, and sizes that may be 0."""
    generator = torch.Generator().manual_seed(tokens)
    slot = torch.randint(-2, rows + 3, (3, tokens), generator=generator, dtype=torch.int32)
    slot = torch.where(torch.arange(tokens) < tokens // 2, slot, slot % 5).clamp(-1, rows - 1)
    sizes = torch.randint(4, slot.shape, generator=generator, dtype=torch.int32)
    return _random_bits(3, tokens, w, values=8), slot, sizes, rows, None, None


_UINT8 = torch.uint8
_WIDE = {131: (200,), 5000: (3,)}  # several programs; rows that a program reads in parts
_FEW_TOKENS = {24: (300,)}  # the definitions of matching take seconds for more

ROWS = {
    "pack_bits": Row(_pack_bits, (*FLOATS, torch.bool, _UINT8), ("pack_sequence", (LOADS_128,)), exact=True),
    "unpack_bits": Row(_unpack_bits, (*FLOATS, _UINT8), ("unpack_vectors", (STORES_128,)), exact=True),
    "restore_bits": Row(_restore_bits, (*FLOATS, _UINT8), ("restore_vectors", (LOADS_128, STORES_128)), exact=True),
    "binarize": Row(_binarize, (*FLOATS, _UINT8), (r"binarize_rowsILNS_5DTypeE\dELb1E", (LOADS_128,)), large=_WIDE),
    "sign_scale": Row(_sign_scale, FLOATS, large=_WIDE),
    "sign_scale_backward": Row(_sign_scale_backward, FLOATS, large=_WIDE),
    "compress_bits": Row(_compress_bits, (_UINT8, *INTEGERS), exact=True, large=_WIDE),
    "expand_bits": Row(
        _expand_bits,
        (_UINT8, *INTEGERS),
        ("expand_wordsIjE", (r"^LDG\.E(\.\w+)* R", r"^STG\.E R?")),
        exact=True,
        large=_WIDE,
    ),
    "unpack_matmul": Row(
        _unpack_matmul,
        (*FLOATS, _UINT8),
        "unpack_matmul",
        cases={
            **{name: partial(_whole_numbers, *size, BRAIN, FLOAT) for name, size in TILED.items()},
            "terms of float32": partial(_whole_numbers, 300, 200, 136, FLOAT, FLOAT),
            "terms of float32, 1 token": partial(_whole_numbers, 1, 72, 1288, FLOAT, FLOAT),
            "terms of float32, 40 tokens": partial(_whole_numbers, 40, 72, 1288, FLOAT, FLOAT),
            "float16": partial(_whole_numbers, 300, 264, 264, HALF, FLOAT),
        },
    ),
    "unpack_matmul_backward": Row(_unpack_matmul_backward, (*FLOATS, _UINT8), large={131: (1100,)}),
    "unpack_matmul_prepared": Row(
        _unpack_matmul_prepared,
        (*FLOATS, _UINT8, torch.int8, torch.int16, torch.float8_e4m3fn),
        "unpack_matmul",
        cases={name: partial(_bytes_prepared, *size, FLOAT) for name, size in TILED.items()},
    ),
    "unpack_geglu": Row(
        lambda: [_unpack_matmul()[i] for i in (0, 2, 4, 5, 6)],
        (*FLOATS, _UINT8),
        "unpack_matmul",
        large={131: (600,)},
    ),
    "unpack_geglu_prepared": Row(
        lambda: _unpack_matmul_prepared()[:5],
        (*FLOATS, _UINT8, torch.int8, torch.int16, torch.float8_e4m3fn),
        "unpack_matmul",
        large={131: (600,)},
    ),
    "hamming_distance": Row(
        _hamming_distance,
        (_UINT8, torch.int32),
        ("hamming_tilesILi16ELb1E", (LOADS_128, BINARY_TILES, STORES_128)),
        exact=True,
        large={131: (600,), 1100: (70,)},
    ),
    "hamming_topk": Row(
        _hamming_topk,
        (_UINT8, *INTEGERS),
        ("select_nearestILb1E", (LOADS_128, r"^ATOMS")),
        exact=True,
        cases={
            "several digits of a distance": lambda: _topk_case(1001, 300, 9),
            "more results than shared memory holds": lambda: _topk_case(1300, 1, 1250),
        },
    ),
    "match_tokens": Row(
        _match_tokens,
        (_UINT8, *INTEGERS),
        ("match_passagesILi16E", (LOADS_128, BINARY_TILES)),
        exact=True,
        large=_FEW_TOKENS,
        cases={
            "one passage among blocks": lambda: _match_case((700,), 400, False),
            "one passage among blocks, packed": lambda: _match_case((611,), 400, True),
            "several tiles a block": lambda: _match_case((330, 0, 257), 200, False),
            "ragged": lambda: _match_case((0, 130, 1, 128, 2, 0), 90, True),
            "several rounds": lambda: _match_case((300, 40), 3, True),
            "tokens of several steps": lambda: _match_case((9, 140), 100, True, w=304),
        },
    ),
    "merge_bits": Row(
        _merge_bits,
        (_UINT8, *INTEGERS),
        ("merge_rowsILi16E", (LOADS_128, STORES_128)),
        exact=True,
        large={131: (300,)},
        cases={"many tokens of a slot": lambda: _merge_case(400, 150), "wide": lambda: _merge_case(60, 70, w=144)},
    ),
    "merge_tokens": Row(
        _merge_tokens,
        (*FLOATS, *INTEGERS),
        (r"merge_meansILNS_5DTypeE0ELb1E", (LOADS_128, STORES_128)),
        large={131: (300,)},
    ),
    "merge_tokens_backward": Row(_merge_tokens_backward, (*FLOATS, *INTEGERS), large={131: (300,)}),
}

#: Channels at the boundaries of bytes, words, vectors, warp tiles and Triton tiles.
CHANNELS = (1, 7, 8, 9, 24, 31, 33, 100, 127, 128, 129, 256, 264, 384, 768, 1000, 1024)
#: Tokens for each of them.
TOKENS = (0, 1, 33)
SEEDS = 2


def operators_of(implementation: str) -> list[str]:
    """The operators that an implementation ("triton", "cuda", with or without "-interpreted" and the like) has."""
    return [name for name in ROWS if not implementation.startswith(("cuda", "emulated")) or ROWS[name].cuda]
