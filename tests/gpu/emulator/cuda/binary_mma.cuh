// Takes the place of csrc/cuda/binary_mma.cuh: the instruction by the fragments that the PTX documentation gives for
// mma.m16n8k256 with .b1, element by element.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

namespace btr::cuda {

inline void count_common_bits(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const auto held = emulator::warp().exchange(Operands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const int group = emulator::lane() / 4, in_group = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i < 2 ? 0 : 8), column = in_group * 2 + (i & 1);
    for (int k = 0; k < 256; k += 32) {
      // Element a_j is of row g for j in [0, 32) and [64, 96), else of g + 8; of channel 32 t + j % 32, and 128 more from
      // j = 64 on. Element b_j is of column g and of channel 32 t + j % 32, and 128 more from j = 32 on.
      const int holder = k % 128 / 32, high = k / 128;
      const uint32_t of_a = held[row % 8 * 4 + holder].a[row / 8 + 2 * high];
      const uint32_t of_b = held[column * 4 + holder].b[high];
      c[i] += __builtin_popcount(of_a & of_b);
    }
  }
}

}  // namespace btr::cuda
