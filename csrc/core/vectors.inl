// Vectors as wide as the instruction set of the including file, through the compiler's vector extension.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/rows.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"

#define BTR_INLINE inline __attribute__((always_inline))

namespace btr::BTR_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<int16_t> {
  typedef int16_t Type __attribute__((vector_size(kVectorBytes)));
  typedef int16_t Unaligned __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::Type;
using Floats = Vector<float>;
using Shorts = Vector<int16_t>;

template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// All of these are always inlined: a vector that crossed a call would be passed as the instruction set has it.
template <typename T>
BTR_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::Unaligned*>(p);
}
template <typename T>
BTR_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::Unaligned*>(p) = v;
}

// As many values of a weight's type as there are sums in a vector, as sums.
template <typename Sum, typename W>
BTR_INLINE Vector<Sum> load_as(const W* p) {
  if constexpr (std::is_same_v<Sum, W>) {
    return load(p);
  } else {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<W, int8_t>)
      return Shorts(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (std::is_same_v<W, half_t>) return Vector<Sum>(_mm512_cvtph_ps(words));
    return Vector<Sum>(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16)));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (std::is_same_v<W, int8_t>) return Vector<Sum>(_mm256_cvtepi8_epi16(bytes));
    if constexpr (std::is_same_v<W, half_t>) return Vector<Sum>(_mm256_cvtph_ps(bytes));
    return Vector<Sum>(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bytes), 16)));
#else
    Vector<Sum> v;
    for (int i = 0; i < kLanes<Sum>; ++i) {
      if constexpr (std::is_same_v<Sum, float>)
        v[i] = to_float(p[i]);
      else
        v[i] = p[i];
    }
    return v;
#endif
  }
}

// A vector of floats as any float type, rounded to nearest even.
template <typename Out>
BTR_INLINE void store_as(Out* p, Floats v) {
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  if constexpr (std::is_same_v<Out, float>) {
    store(p, v);
  } else if constexpr (std::is_same_v<Out, bfloat16_t>) {
    const Words u = Words(v), nan = (u >> 16) | 0x0040;
    const Words bits = (u & 0x7fffffff) > 0x7f800000 ? nan : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const Halves halves = __builtin_convertvector(bits, Halves);
    std::memcpy(p, &halves, sizeof halves);
  } else {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes<float>; ++i) p[i] = from_float<Out>(v[i]);
#endif
  }
}

// The lower (half 0) or upper (half 1) lanes of a vector of int16, as floats.
template <int Half>
BTR_INLINE Floats widen(Shorts v) {
#if defined(__AVX512F__)
  return Floats(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(__m512i(v), Half))));
#elif defined(__AVX2__)
  return Floats(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(__m256i(v), Half))));
#else
  Floats f;
  for (int i = 0; i < kLanes<float>; ++i) f[i] = float(v[Half * kLanes<float> + i]);
  return f;
#endif
}

// The sum of all lanes.
BTR_INLINE float sum_of(Floats v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m512 all = __m512(v);
  const __m256 halves =
      _mm256_add_ps(_mm512_castps512_ps256(all), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
#else
  const __m256 halves = __m256(v);
#endif
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

}  // namespace btr::BTR_ISA_NAMESPACE
