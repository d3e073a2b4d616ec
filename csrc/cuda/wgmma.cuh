// Tensor cores of a warp group (Hopper, wgmma): the first operand in registers, the second in shared memory.
// tests/gpu/emulator has functions of the same names for the CPU.
#pragma once

#include <cstdint>

#include "core/types.h"
#include "cuda/ptx.cuh"

namespace btr::cuda {

// Where the second operand lies: rows of 128 bytes along K, swizzled as tensor_map.cuh says, at a multiple of 1024 bytes;
// 8 rows are 1024 bytes. K continues after 32 bytes of each row: see `advanced`.
__host__ __device__ constexpr uint64_t operand_at(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1, kUnused = 1;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | kUnused << 16 | kEightRows << 32 | kSwizzle128 << 62;
}
// The same operand `bytes` further along K, within 128.
__host__ __device__ constexpr uint64_t advanced(uint64_t operand, int bytes) { return operand + (bytes >> 4); }

#ifdef BTR_HOPPER

// Before the first multiplication, and again whenever its registers were written otherwise.
__device__ __forceinline__ void open_multiplications() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of multiplications.
__device__ __forceinline__ void commit_multiplications() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kLeft groups are under way. Until then neither their registers nor the operands in shared memory may
// be touched.
template <int kLeft>
__device__ __forceinline__ void wait_multiplications() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// ---- sums (64 x kColumns) = [sums +] a (64 x K) b (kColumns x K, K along rows), K of 32 bytes. ----
// Warp w of the group has rows 16 w to 16 w + 15, in which its lanes hold a as for multiply_tile (ptx.cuh), and sums 4 i to
// 4 i + 3 are its tile of columns 8 i to 8 i + 7.

#define BTR_NAMES_16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p) \
  "%" #a ", %" #b ", %" #c ", %" #d ", %" #e ", %" #f ", %" #g ", %" #h ", %" #i ", %" #j ", %" #k ", %" #l ", %" #m ", %" #n ", %" #o ", %" #p
#define BTR_NAMES_32                                                     \
  BTR_NAMES_16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) ", " \
  BTR_NAMES_16(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)
#define BTR_NAMES_64                                                                        \
  BTR_NAMES_32 ", " BTR_NAMES_16(32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47) ", " \
  BTR_NAMES_16(48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63)
#define BTR_SUMS_8(C, i)                                                                                           \
  "+" C(sums[i]), "+" C(sums[i + 1]), "+" C(sums[i + 2]), "+" C(sums[i + 3]), "+" C(sums[i + 4]), "+" C(sums[i + 5]), \
      "+" C(sums[i + 6]), "+" C(sums[i + 7])
#define BTR_SUMS_32(C, i) BTR_SUMS_8(C, i), BTR_SUMS_8(C, i + 8), BTR_SUMS_8(C, i + 16), BTR_SUMS_8(C, i + 24)
#define BTR_SUMS_64(C, i) BTR_SUMS_32(C, i), BTR_SUMS_32(C, i + 32)

// `numbers` are those of the operands that follow the sums.
#define BTR_WGMMA(TYPES, TAIL, NAMES, SUMS, A0, A1, A2, A3, B, GO)                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #GO ", 0;\nwgmma.mma_async.sync.aligned." TYPES " {" NAMES  \
               "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p" TAIL ";\n}"                            \
               : SUMS                                                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<uint32_t>(adding)))
#define BTR_WGMMA_COLUMNS(K, TYPES, TAIL, C)                                                              \
  if constexpr (kSums == 64) {                                                                            \
    BTR_WGMMA("m64n128" K TYPES, TAIL, BTR_NAMES_64, BTR_SUMS_64(C, 0), 64, 65, 66, 67, 68, 69);          \
  } else {                                                                                                \
    static_assert(kSums == 32, "no such tile");                                                           \
    BTR_WGMMA("m64n64" K TYPES, TAIL, BTR_NAMES_32, BTR_SUMS_32(C, 0), 32, 33, 34, 35, 36, 37);           \
  }

template <DType kType, int kSums>
__device__ __forceinline__ void multiply_rows(float (&sums)[kSums], const uint32_t (&a)[4], uint64_t b, bool adding) {
  if constexpr (kType == DType::bf16) {
    BTR_WGMMA_COLUMNS("k16", ".f32.bf16.bf16", ", 1, 1, 0", "f")
  } else if constexpr (kType == DType::f16) {
    BTR_WGMMA_COLUMNS("k16", ".f32.f16.f16", ", 1, 1, 0", "f")
  } else {
    static_assert(kType == DType::e4m3, "no such tile");
    BTR_WGMMA_COLUMNS("k32", ".f32.e4m3.e4m3", ", 1, 1", "f")
  }
}
template <DType kType, int kSums>
__device__ __forceinline__ void multiply_rows(int32_t (&sums)[kSums], const uint32_t (&a)[4], uint64_t b, bool adding) {
  static_assert(kType == DType::i8, "no such tile");
  BTR_WGMMA_COLUMNS("k32", ".s32.s8.s8", "", "r")
}

#undef BTR_WGMMA_COLUMNS
#undef BTR_WGMMA
#undef BTR_SUMS_64
#undef BTR_SUMS_32
#undef BTR_SUMS_8
#undef BTR_NAMES_64
#undef BTR_NAMES_32
#undef BTR_NAMES_16

#endif

}  // namespace btr::cuda
