// Packed signs as an operand of tensor cores, expanded in the registers that the instruction reads them from.
//
// An operand is +-1 of 32 bytes a row: 16 channels of 2 bytes or 32 of 1. Lane t of the four that share a row holds bytes
// 4 t to 4 t + 3 of each half. 1.25 instructions a value (16 bits) and as many of the multiply-add pipe and others (8 bits).
#pragma once

#include <cstdint>

#include "core/types.h"
#include "cuda/ptx.cuh"

namespace btr::cuda {

template <DType kType>
constexpr bool kIsByte = size_of(kType) == 1;

// 32 bits of one row, the first lowest, make this many words of a lane: those of two operands for 16-bit types, of one for
// 8-bit ones.
template <DType kType>
constexpr int kWordsOf32 = kIsByte<kType> ? 2 : 4;

// 1 and -1 in two halves of a word.
template <DType kType>
constexpr uint32_t kOnes = kType == DType::bf16 ? 0x3f803f80u : 0x3c003c00u;

// Four values of one byte, of the lowest four bits of `zeros`: 1 where a bit is 0.
template <DType kType>
__host__ __device__ __forceinline__ uint32_t four_signs(uint32_t zeros) {
  // Bit i of a nibble moves to bit 8 i: the product has it at i + 7 j for every j, no two of them at the same place.
  if constexpr (kType == DType::i8) {
    return ((zeros & 15) * 0x00204081u & 0x01010101u) * 0xfeu + 0x01010101u;  // 1, or 1 + 254 = -1
  } else {
    return ((zeros & 15) * 0x10204080u & 0x80808080u) | 0x38383838u;
  }
}

// The words of lane t, of channels in their order.
template <DType kType>
__device__ __forceinline__ void expand_in_order(uint32_t bits, int t, uint32_t (&words)[kWordsOf32<kType>]) {
  const uint32_t zeros = ~bits;
  if constexpr (kIsByte<kType>) {
    words[0] = four_signs<kType>(zeros >> 4 * t);
    words[1] = four_signs<kType>(zeros >> (4 * t + 16));
  } else {
    // Channels 8 j + 2 t and the next: their bits become the highest of byte j, in `first` and `second`.
    const uint32_t first = zeros << (7 - 2 * t), second = zeros << (6 - 2 * t);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      words[j] = (permute_bytes(first, second, j << 4 | (4 + j) << 12) & 0x80008000u) | kOnes<kType>;
    }
  }
}

// The words of a lane for channels in another order, the same for both operands: those of the lane follow each other. That
// is how they are found where the other operand comes from memory in 16-byte vectors. `bits` are 8 channels of 2 bytes or
// 16 of one, lowest; four words, two of each operand.
template <DType kType>
__device__ __forceinline__ void expand_vector(uint32_t bits, uint32_t (&words)[4]) {
  const uint32_t zeros = ~bits;
  if constexpr (kIsByte<kType>) {
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = four_signs<kType>(zeros >> 4 * j);
  } else {
    const uint32_t twice = (zeros & 0xff) * 0x8001u;  // bit i also at i + 15: the second of a pair 16 above the first
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = (twice << (15 - 2 * j) & 0x80008000u) | kOnes<kType>;
  }
}

}  // namespace btr::cuda
