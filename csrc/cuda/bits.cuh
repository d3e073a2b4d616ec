// Bits and floats in registers: what the packing and unpacking kernels do to one 16-byte vector and to one warp's words.
//
// A vector of 16 bytes holds K = 4 (f32), 8 (f16, bf16) or 16 (boolean) elements, so K bits. A warp that reads vectors
// the coalesced way (lane l takes vector 32 j + l in its j-th load) ends up with the 32 bits of one output word spread
// over G = 32 / K neighbouring lanes. After G loads each lane holds G fields of K bits, and within each group of G lanes
// these form a G x G matrix of fields: transposing it gives every lane one whole word. That takes log2(G) shuffles for
// G loads, where ballots would take K per load.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/types.h"

namespace btr::cuda {

template <DType kType>
constexpr int kPerVector = static_cast<int>(16 / size_of(kType));

__host__ __device__ __forceinline__ float bits_to_float(uint32_t u) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(u);
#else
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
#endif
}

__host__ __device__ __forceinline__ uint32_t float_to_bits(float f) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(f);
#else
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
#endif
}

// A float of any dtype as float32, exactly; `element` holds its bits.
template <DType kType>
__host__ __device__ __forceinline__ float widened(uint32_t element) {
  if constexpr (kType == DType::f32) {
    return bits_to_float(element);
  } else if constexpr (kType == DType::f16) {
    return __half2float(__half(__half_raw{static_cast<unsigned short>(element)}));
  } else {
    return bits_to_float(element << 16);
  }
}

// ---- Packing: 16-bit floats are widened (exactly) so that one IEEE comparison decides -0, NaN and denormals. ----

template <DType kType>
__host__ __device__ __forceinline__ bool is_one(uint32_t element) {
  if constexpr (kType == DType::boolean) {
    return (element & 0xff) != 0;
  } else {
    return widened<kType>(element) >= 0.0f;
  }
}

// Bits of the elements in 4 bytes of memory, first element lowest.
template <DType kType>
__host__ __device__ __forceinline__ uint32_t signs_of_word(uint32_t word) {
  if constexpr (kType == DType::f32) {
    return is_one<kType>(word);
  } else if constexpr (kType == DType::boolean) {
    // Bit 0 of each byte: whether the byte is not zero. The product moves bit 0 of byte i to bit 24 + i; its other terms
    // fall on distinct bits below 24 or beyond 31, so nothing carries.
    const uint32_t ones = ((((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) >> 7) & 0x01010101u;
    return (ones * 0x01020408u) >> 24;
  } else {
    return static_cast<uint32_t>(is_one<kType>(word & 0xffff)) | static_cast<uint32_t>(is_one<kType>(word >> 16)) << 1;
  }
}

// The K bits of a vector.
template <DType kType>
__host__ __device__ __forceinline__ uint32_t signs_of_vector(uint4 v) {
  constexpr int kPerWord = kPerVector<kType> / 4;
  return signs_of_word<kType>(v.x) | signs_of_word<kType>(v.y) << kPerWord | signs_of_word<kType>(v.z) << (2 * kPerWord) |
         signs_of_word<kType>(v.w) << (3 * kPerWord);
}

// ---- Transposing fields of K bits between the 32 / K lanes of a group ----

// One step: exchanges, between the lanes that differ in `distance`, the fields that differ in `distance`.
// `mine` and `partner` are the words of this lane and of lane ^ distance; both lanes of a pair compute their own half.
template <int K>
__host__ __device__ __forceinline__ uint32_t exchange_fields(uint32_t mine, uint32_t partner, int lane, int distance) {
  const int shift = distance * K;
  // Fields whose index lacks the bit `distance`: runs of `shift` ones, `shift` zeros, from the bottom.
  const uint32_t low = 0xffffffffu / ((1u << shift) + 1);
  return lane & distance ? (mine & ~low) | ((partner & ~low) >> shift) : (mine & low) | ((partner & low) << shift);
}

// Field j of lane l (both counted within the group of 32 / K lanes) becomes field l of lane j. Its own inverse.
// All 32 lanes of the warp call it.
template <int K>
__device__ __forceinline__ uint32_t transpose_fields(uint32_t word, int lane) {
#pragma unroll
  for (int distance = 16 / K; distance >= 1; distance /= 2) {
    word = exchange_fields<K>(word, __shfl_xor_sync(0xffffffffu, word, distance), lane, distance);
  }
  return word;
}

// ---- Unpacking ----

// scale where bit i of `bits` is 1, -scale where it is 0.
__host__ __device__ __forceinline__ float with_sign(float scale, uint32_t bits, int i) {
  return bits_to_float(float_to_bits(scale) ^ ((~bits << (31 - i)) & 0x80000000u));
}

// Rounded product and sum, never contracted to a fused multiply-add: results then equal the reference's to the bit.
__host__ __device__ __forceinline__ float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
__host__ __device__ __forceinline__ float add(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// Elements of type kType in 4 bytes of memory: one float32, or two floats rounded to nearest even.
template <DType kType>
__host__ __device__ __forceinline__ uint32_t word_of(float first, float second) {
  if constexpr (kType == DType::f16) {
    const __half2_raw pair = __floats2half2_rn(first, second);
    return pair.x | static_cast<uint32_t>(pair.y) << 16;
  } else {
    const __nv_bfloat162_raw pair = __floats2bfloat162_rn(first, second);
    return pair.x | static_cast<uint32_t>(pair.y) << 16;
  }
}

// ---- Vectors of floats: V is uint4, or the storage of one element. ----

// Element i, widened exactly.
template <DType kType, typename V>
__host__ __device__ __forceinline__ float element(const V& vector, int i) {
  if constexpr (sizeof(V) < 16) {
    return widened<kType>(vector);
  } else {
    constexpr int kPerWord = kPerVector<kType> / 4;
    const int word = i / kPerWord;
    const uint32_t held = word == 0 ? vector.x : word == 1 ? vector.y : word == 2 ? vector.z : vector.w;
    return widened<kType>(kPerWord == 1 ? held : held >> (16 * (i % 2)) & 0xffff);
  }
}

// Floats rounded to nearest even.
template <DType kType, typename V, int K>
__host__ __device__ __forceinline__ V rounded(const float (&values)[K]) {
  if constexpr (K == 1) {
    if constexpr (kType == DType::f32) return float_to_bits(values[0]);
    else return static_cast<V>(word_of<kType>(values[0], 0.0f));
  } else if constexpr (kType == DType::f32) {
    return {float_to_bits(values[0]), float_to_bits(values[1]), float_to_bits(values[2]), float_to_bits(values[3])};
  } else {
    return {word_of<kType>(values[0], values[1]), word_of<kType>(values[2], values[3]),
            word_of<kType>(values[4], values[5]), word_of<kType>(values[6], values[7])};
  }
}

// ---- Floats as sums of bfloat16 terms ----

// The part of `value` that bfloat16 holds, as the upper half of a word; `value` becomes what it leaves. Cut off rather than
// rounded, so that nothing overflows and three are exact. All of an infinity or NaN is in the first.
__host__ __device__ __forceinline__ uint32_t next_term(float& value) {
  const uint32_t bits = float_to_bits(value), cut = bits & 0xffff0000u;
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    value = 0.0f;
    return bits & 0x7fffffu ? 0x7fc00000u : cut;
  }
  value -= bits_to_float(cut);
  return cut;
}

}  // namespace btr::cuda
