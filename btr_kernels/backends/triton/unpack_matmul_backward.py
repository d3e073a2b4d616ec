"""Gradients of `unpack_matmul` in weight and scale. Bound by the tensor cores, as the projection itself.

Both follow from the products of the upstream gradient with the signs, (N, d) sums over tokens. Tensor cores take the
signs from registers as in the projection, but with channels for rows; the gradient takes the weight's place: 16-bit
floats are multiplied as they are, float32 and what a factor per token is multiplied with as a sum of bfloat16 terms.
Sums go to float32 scratch memory, since tiles of channels and columns alone are too few programs for a GPU; a second
pass adds them in order and makes both gradients.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import INTERPRET, on_device, power_of_two, rounded, widened
from .expand import as_words, masks, signs
from .terms import in_memory, terms_of

#: Tiles of channels and columns, and tokens a step.
_TILES = {
    90: (
        {"BD": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BD": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3},
        {"BD": 64, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 4},
    ),
    80: (
        {"BD": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 4},
        {"BD": 64, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 4},
    ),
    0: ({"BD": 512, "BN": 128, "BK": 512, "num_warps": 4, "num_stages": 1},),
}
#: The same for terms, whose turns take registers.
_TERM_TILES = {90: (_TILES[90][0], _TILES[90][2]), 80: (_TILES[80][1],), 0: _TILES[0]}
#: Tiles of the second pass.
_ROWS, _CHANNELS = 16, 256


@triton.jit(do_not_specialize=["m", "steps"])
def _products(
    table, words, grad, out, m, rows, steps, n_columns, stride_n, stride_k, plane,
    D: tl.constexpr, ROW_WORDS: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr,
    BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """words (M, ROW_WORDS) of WIDTH bits, grad (TERMS, N, rows) -> out (parts, N, D): sums over tokens, `steps` of BK
    tokens a part. Terms in memory have more rows than there are tokens, of zeros: so many that vectors are whole."""
    DEPTH: tl.constexpr = (D + BD - 1) // BD
    columns = tl.cdiv(n_columns, BN)
    program = tl.program_id(0).to(tl.int64)
    # Programs that run together share tokens.
    part = program // (DEPTH * columns)
    tile = program % (DEPTH * columns)
    WORDS: tl.constexpr = BD // WIDTH
    word = (tile % DEPTH) * WORDS + tl.arange(0, WORDS)
    channel = (tile % DEPTH) * BD + tl.arange(0, BD)
    n = (tile // DEPTH) * BN + tl.arange(0, BN)
    exists = n < n_columns
    # The interpreter multiplies only float32 and int8 correctly.
    dtype: tl.constexpr = tl.float32 if INTERPRET else grad.dtype.element_ty
    mask_table = tl.load(table + tl.arange(0, WIDTH))
    acc = tl.zeros((BD, BN), tl.float32)
    begin = part * steps * BK
    end = tl.minimum(begin + steps * BK, rows)
    count = tl.cdiv(end - begin, BK)
    for turn in range(TERMS * count):  # the least term first, as in `project`
        start = begin + (turn if TERMS == 1 else turn % count) * BK
        term = grad if TERMS == 1 else grad + (TERMS - 1 - turn // count) * plane
        token = start + tl.arange(0, BK)
        mask = (token < m)[:, None] & (word < ROW_WORDS)[None, :]
        a = signs(
            tl.load(words + token[:, None] * ROW_WORDS + word[None, :], mask=mask, other=0),
            mask_table, dtype, WORDS, WIDTH,
        )  # fmt: skip
        place = term + token[:, None] * stride_k + n[None, :] * stride_n
        g = tl.load(place, mask=(token < rows)[:, None] & exists[None, :], other=0.0)
        if INTERPRET:
            g = widened(g)
        acc = tl.dot(tl.trans(a), g, acc)
    place = out + (part * n_columns + n)[:, None] * D + channel[None, :]
    tl.store(place, tl.trans(acc), mask=exists[:, None] & (channel < D)[None, :])


@triton.jit
def _gradients(
    parts, weight, scale, grad_weight, sums, n_columns, D: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """parts (SPLIT, N, D) -> grad_weight (N, D), and sums (blocks of rows, D), whose sum is the scale's gradient."""
    BLOCKS: tl.constexpr = (D + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0).to(tl.int64)
    block = program // BLOCKS
    n = block * ROWS + tl.arange(0, ROWS)
    channel = (program % BLOCKS) * CHANNELS + tl.arange(0, CHANNELS)
    place = n[:, None] * D + channel[None, :]
    inside = (n < n_columns)[:, None] & (channel < D)[None, :]
    total = tl.load(parts + place, mask=inside, other=0.0)
    for i in tl.static_range(1, SPLIT):
        total += tl.load(parts + i * n_columns.to(tl.int64) * D + place, mask=inside, other=0.0)
    if sums is not None:
        weighted = total * widened(tl.load(weight + place, mask=inside, other=0))
        tl.store(sums + block * D + channel, tl.sum(weighted, axis=0), mask=channel < D)
    if grad_weight is not None:
        if scale is not None:
            total *= widened(tl.load(scale + channel, mask=channel < D, other=0))[None, :]
        tl.store(grad_weight + place, rounded(total, grad_weight.dtype.element_ty), mask=inside)


def unpack_matmul_backward(
    grad: Tensor,
    bits: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    token_scale: Tensor | None,
    for_weight: bool,
    for_scale: bool,
    grad_weight: Tensor,
    grad_scale: Tensor,
) -> None:
    n, d = weight.shape
    if n == 0:
        grad_scale.zero_()
        return
    words = as_words(bits)
    m = words.shape[0]
    grad = grad.reshape(m, n).contiguous().t()
    weight = weight.contiguous()
    scale, token_scale = (None if v is None else v.contiguous() for v in (scale, token_scale))
    exact = (for_weight and weight.dtype == torch.float32) or (for_scale and grad_scale.dtype == torch.float32)
    terms = terms_of(grad.dtype, token_scale, torch.float32 if exact else torch.bfloat16)
    key = (power_of_two(m), n, d, grad.dtype, terms)
    with on_device(bits):
        plane, (stride_n, stride_k) = 0, grad.stride()
        if terms is not None:
            grad = in_memory(grad, token_scale, terms)
            plane, stride_n, stride_k = grad.stride()
        table = masks(bits.device)

        def launch(BD: int, BN: int, BK: int, SPLIT: int, num_warps: int, num_stages: int) -> None:
            steps = triton.cdiv(triton.cdiv(m, BK), SPLIT)  # the last parts may have fewer, or none
            parts = torch.empty((SPLIT, n, d), dtype=torch.float32, device=bits.device)
            grid = triton.cdiv(d, BD) * triton.cdiv(n, BN) * SPLIT
            _products[(grid,)](
                table, words, grad, parts, m, grad.shape[-1], steps, n, stride_n, stride_k, plane,
                D=d, ROW_WORDS=words.shape[1], WIDTH=8 * words.element_size(), TERMS=terms or 1, BD=BD, BN=BN, BK=BK,
                num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False,
            )  # fmt: skip
            blocks = triton.cdiv(n, _ROWS)
            sums = torch.empty((blocks, d), dtype=torch.float32, device=bits.device) if for_scale else None
            _gradients[(blocks * triton.cdiv(d, _CHANNELS),)](
                parts, weight, scale, grad_weight if for_weight else None, sums, n,
                D=d, SPLIT=SPLIT, ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
            if for_scale:
                grad_scale.copy_(sums.sum(0))

        configs = [
            {"SPLIT": split, **tile}
            for tile in tuning.for_device(_TILES if terms is None else _TERM_TILES, bits.device)
            for split in _splits(tile, m, n, d, bits.device)
        ]
        tuning.run("unpack_matmul_backward", configs, key, launch, bits.device)


def _splits(tile: tuning.Config, m: int, n: int, d: int, device: torch.device) -> list[int]:
    """Into how many parts the tokens may be split, likeliest first: one, and so many that every processor has a
    program."""
    programs = triton.cdiv(d, tile["BD"]) * triton.cdiv(n, tile["BN"])
    parts = max(1, min(triton.cdiv(m, tile["BK"]), triton.cdiv(tuning.processors(device), programs)))
    # A part of less than 16 steps costs more in its sums than it saves.
    return sorted({1, parts}, reverse=INTERPRET or m >= 16 * parts * tile["BK"])
