// The tensor cores' instruction for single bits: how many bits two rows have in common.
//
// AND + POPC is the form that Ampere, Ada and Hopper execute as one instruction; Hopper takes XOR apart, and newer GPUs
// take both. A Hamming
// distance is then popc(a) + popc(b) - 2 popc(a & b), with the population counts of the rows counted once.
#pragma once

#include <cstdint>

namespace btr::cuda {

// A warp's 16 x 8 counts += popc(a & b) over 256 bits. With g = lane / 4 and t = lane % 4, a lane holds words t and t + 4
// of rows g (a[0], a[2]) and g + 8 (a[1], a[3]) of a and of row g of b (b[0], b[1]), and the counts of row g (c[0], c[1])
// and g + 8 (c[2], c[3]) with rows 2 t and 2 t + 1 of b. Which bits count as word t of a row is free, as long as a and b
// agree.
__device__ __forceinline__ void count_common_bits(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace btr::cuda
