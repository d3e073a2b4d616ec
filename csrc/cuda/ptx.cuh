// Instructions that C++ has no words for, one function each: asynchronous copies, barriers in shared memory, and the
// tensor cores of Ampere (mma.sync). Those of Hopper are in wgmma.cuh. tests/gpu/emulator has functions of the same names
// for the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/types.h"
#include "cuda/tensor_map.cuh"

namespace btr::cuda {

// Shared memory has an address space of its own, of 32 bits.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Byte b of the result is the one of 8 (a's, then b's) that nibble b of the selector names.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// ---- Copies of a thread (Ampere) to shared memory: kBytes, at a multiple of as many, or as many zeros. ----

template <int kBytes>
__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, bool exists) {
  const int read = exists ? kBytes : 0;
  if constexpr (kBytes == 16) {  // past L1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(read) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes), "r"(read) : "memory");
  }
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kLeft committed groups of this thread are under way.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// ---- Tensor cores of a warp ----

// Four 8 x 16-byte matrices: lane l names row l % 8 of matrix l / 8, and gets 4 bytes of each, 4 (l % 4) of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

// sums (16 x 8) += a (16 x K) b (K x 8), K of 32 bytes. With g = lane / 4 and t = lane % 4, a lane holds bytes 4 t of
// rows g and g + 8 of a (a[0], a[1]), bytes 16 + 4 t of both (a[2], a[3]), the same bytes of column g of b, and columns
// 2 t, 2 t + 1 of rows g (sums[0], sums[1]) and g + 8.
#define BTR_MMA(SHAPE, TYPES, C)                                                                                    \
  asm("mma.sync.aligned." SHAPE ".row.col." TYPES " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+" C(sums[0]), "+" C(sums[1]), "+" C(sums[2]), "+" C(sums[3])                                              \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <DType kType>
__device__ __forceinline__ void multiply_tile(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kType == DType::bf16) {
    BTR_MMA("m16n8k16", "f32.bf16.bf16.f32", "f");
  } else {
    static_assert(kType == DType::f16, "no such tile");
    BTR_MMA("m16n8k16", "f32.f16.f16.f32", "f");
  }
}
template <DType kType>
__device__ __forceinline__ void multiply_tile(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kType == DType::i8, "no such tile");
  BTR_MMA("m16n8k32", "s32.s8.s8.s32", "r");
}
#undef BTR_MMA

// Two e4m3 numbers as f16, exactly: one instruction from compute capability 8.9 on.
__device__ __forceinline__ uint32_t halves_of(uint16_t pair) {
  uint32_t halves = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
#endif
  return halves;
}

#if !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BTR_AMPERE 1  // for all but Hopper, which has kernels of its own
#else
#define BTR_HOPPER 1

// ---- Barriers in shared memory: a phase ends once `arrivals` threads have arrived and the bytes expected have come. ----

__device__ __forceinline__ void initialise_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After the initialisations, before the threads of the block meet: copies see them too.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits for the end of the barrier's phase of this parity: 0 is that of its first.
__device__ __forceinline__ void wait_for(uint32_t barrier, int parity) {
  uint32_t done = 0;
  while (!done) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  }
}

// ---- Copies of the tensor memory accelerator ----

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// A box of a tensor, whose first element is at (x, y, z), to shared memory; its bytes arrive at a barrier.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, uint32_t barrier, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
               ::"r"(to), "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
               : "memory");
}

// ---- Registers that a warp group gives to the others of its block, or takes ----

template <int kEach>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kEach));
}
template <int kEach>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kEach));
}
#endif

}  // namespace btr::cuda
