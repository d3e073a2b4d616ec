// Signs as the first operand of the tensor cores, from packed bits in memory.
#pragma once

#include "cuda/expand.cuh"
#include "cuda/projection.cuh"

namespace btr::cuda {

// The bits of a lane's rows of a tile, kSets times 16 of the warp: those of a step, 128 bytes of each row of the weight, and
// the next ones on their way.
template <DType kType, int kSets>
struct Signs {
  // Words of 32 channels of a step, and rows of a thread.
  static constexpr int kWords = kIsByte<kType> ? 4 : 2, kRows = 2 * kSets;
  const uint8_t* rows[kRows];
  uint32_t words[kRows][kWords], coming[kRows][kWords];

  __device__ __forceinline__ Signs(const Projection& p, const int64_t (&first)[kSets], int lane) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first[r / 2] + lane / 4 + 8 * (r % 2);
      rows[r] = p.bits + (row < p.m ? row : p.m - 1) * p.row_bytes;
    }
  }
  // What is past a row's end is multiplied with zeros.
  __device__ __forceinline__ void load(const Projection& p, int step) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int w = 0; w < kWords; w += 2) {
        const int64_t byte = (static_cast<int64_t>(step) * kWords + w) * 4;
        const uint2 both = byte < p.row_bytes ? *reinterpret_cast<const uint2*>(rows[r] + byte) : uint2{0, 0};
        coming[r][w] = both.x, coming[r][w + 1] = both.y;
      }
    }
  }
  __device__ __forceinline__ void take() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) words[r][w] = coming[r][w];
    }
  }
  // First operands of half a step: two of each set.
  __device__ __forceinline__ void expand(int half, int lane, uint32_t (&operands)[kSets][2][4]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int w = 0; w < kWords / 2; ++w) {
        uint32_t made[kWordsOf32<kType>];
        expand_in_order<kType>(words[r][half * kWords / 2 + w], lane % 4, made);
        if constexpr (kIsByte<kType>) {
          operands[r / 2][w][r % 2] = made[0], operands[r / 2][w][2 + r % 2] = made[1];
        } else {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            operands[r / 2][k][r % 2] = made[2 * k], operands[r / 2][k][2 + r % 2] = made[2 * k + 1];
          }
        }
      }
    }
  }
};

}  // namespace btr::cuda
