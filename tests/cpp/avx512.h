// AVX-512 intrinsics on a CPU without AVX-512: SIMDe's (Debian: libsimde-dev) under their own names, and plain loops
// for those it lacks. Included before every AVX-512 kernel with -include, compiled with the flags of AVX2
// (BTR_EMULATE_AVX512 in CMakeLists.txt), so that the sources themselves are what is tested.
#pragma once

#include <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>
#include <functional>

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512VPOPCNTDQ__ 1

#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace emulated {

// A vector V as an array of its elements E.
template <typename E, typename V>
struct Elements {
  static constexpr int kCount = int(sizeof(V) / sizeof(E));
  E at[kCount];
  Elements() = default;
  explicit Elements(V v) { std::memcpy(at, &v, sizeof v); }
  V vector() const {
    V v;
    std::memcpy(&v, at, sizeof v);
    return v;
  }
};

// Elements outside of the mask are not touched in memory, and 0 in the vector.
template <typename E, typename V>
V load(uint64_t mask, const void* from) {
  Elements<E, V> v;
  for (int i = 0; i < v.kCount; ++i) {
    v.at[i] = 0;
    if (mask >> i & 1) std::memcpy(&v.at[i], static_cast<const E*>(from) + i, sizeof(E));
  }
  return v.vector();
}

template <typename E, typename V>
void store(void* to, uint64_t mask, V vector) {
  const Elements<E, V> v(vector);
  for (int i = 0; i < v.kCount; ++i)
    if (mask >> i & 1) std::memcpy(static_cast<E*>(to) + i, &v.at[i], sizeof(E));
}

template <typename To, typename W, typename From, typename V>
W convert(V vector) {
  const Elements<From, V> v(vector);
  Elements<To, W> result;
  for (int i = 0; i < result.kCount; ++i) result.at[i] = To(v.at[i]);
  return result.vector();
}

inline __m512 floats_of_halves(__m256i v) {
  const Elements<__m128i, __m256i> half(v);
  Elements<__m256, __m512> result;
  for (int i = 0; i < 2; ++i) result.at[i] = _mm256_cvtph_ps(half.at[i]);
  return result.vector();
}

template <typename E, typename V, typename F>
uint64_t compare(uint64_t mask, V a, V b, F&& f) {
  const Elements<E, V> x(a), y(b);
  uint64_t bits = 0;
  for (int i = 0; i < x.kCount; ++i) bits |= uint64_t(f(x.at[i], y.at[i])) << i;
  return bits & mask;
}

template <typename E, typename V, typename F>
E fold(V vector, F&& f) {
  const Elements<E, V> v(vector);
  E result = v.at[0];
  for (int i = 1; i < v.kCount; ++i) result = f(result, v.at[i]);
  return result;
}

template <int kRounding>
__m256i halves_of_floats(__m512 v) {
  const Elements<__m256, __m512> half(v);
  Elements<__m128i, __m256i> result;
  for (int i = 0; i < 2; ++i) result.at[i] = _mm256_cvtps_ph(half.at[i], kRounding);
  return result.vector();
}

// Streaming stores fault on an address that is not aligned.
template <typename V>
void stream(void* to, V v) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof v) __builtin_trap();
  std::memcpy(to, &v, sizeof v);
}

}  // namespace emulated

// What SIMDe 0.7 lacks. A newer one may have it under the same name.
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(k, p) emulated::load<float, __m512>(k, p)
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8(k, p) emulated::load<int8_t, __m512i>(k, p)
#undef _mm512_maskz_loadu_epi16
#define _mm512_maskz_loadu_epi16(k, p) emulated::load<int16_t, __m512i>(k, p)
#undef _mm256_maskz_loadu_epi16
#define _mm256_maskz_loadu_epi16(k, p) emulated::load<int16_t, __m256i>(k, p)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(p, k, v) emulated::store<float, __m512>(p, k, v)
#undef _mm512_mask_storeu_epi8
#define _mm512_mask_storeu_epi8(p, k, v) emulated::store<int8_t, __m512i>(p, k, v)
#undef _mm512_mask_storeu_epi16
#define _mm512_mask_storeu_epi16(p, k, v) emulated::store<int16_t, __m512i>(p, k, v)
#undef _mm256_mask_storeu_epi16
#define _mm256_mask_storeu_epi16(p, k, v) emulated::store<int16_t, __m256i>(p, k, v)
#undef _mm512_stream_ps
#define _mm512_stream_ps(p, v) emulated::stream<__m512>(p, v)
#undef _mm512_stream_si512
#define _mm512_stream_si512(p, v) emulated::stream<__m512i>(p, v)
#undef _mm512_mask_cmpeq_epi16_mask
#define _mm512_mask_cmpeq_epi16_mask(k, a, b) emulated::compare<int16_t, __m512i>(k, a, b, std::equal_to<>())
#undef _mm512_mask_cmplt_epi32_mask
#define _mm512_mask_cmplt_epi32_mask(k, a, b) emulated::compare<int32_t, __m512i>(k, a, b, std::less<>())
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(v) emulated::convert<int32_t, __m512i, int8_t, __m128i>(v)
#undef _mm512_cvtepi16_epi32
#define _mm512_cvtepi16_epi32(v) emulated::convert<int32_t, __m512i, int16_t, __m256i>(v)
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(v) emulated::convert<int32_t, __m512i, uint16_t, __m256i>(v)
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(v) emulated::convert<int16_t, __m256i, int32_t, __m512i>(v)
// Converts all: the mask is only there for GCC 12, which warns of the plain one.
#undef _mm512_maskz_cvtepi64_epi32
#define _mm512_maskz_cvtepi64_epi32(k, v) emulated::convert<int32_t, __m256i, int64_t, __m512i>(v)
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(v) emulated::convert<float, __m512, int32_t, __m512i>(v)
#undef _mm512_cvtps_pd
#define _mm512_cvtps_pd(v) emulated::convert<double, __m512d, float, __m256>(v)
#undef _mm512_reduce_add_pd
#define _mm512_reduce_add_pd(v) emulated::fold<double, __m512d>(v, std::plus<>())
#undef _mm512_reduce_add_epi64
#define _mm512_reduce_add_epi64(v) emulated::fold<int64_t, __m512i>(v, std::plus<>())
#undef _mm512_reduce_min_epi32
#define _mm512_reduce_min_epi32(v) emulated::fold<int32_t, __m512i>(v, [](int32_t a, int32_t b) { return a < b ? a : b; })
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(v) emulated::floats_of_halves(v)
// Wrong in SIMDe 0.7: it takes an operator.
#undef _mm512_mask_cmple_epu16_mask
#define _mm512_mask_cmple_epu16_mask(k, a, b) emulated::compare<uint16_t, __m512i>(k, a, b, std::less_equal<>())
// Not of SIMDe's making there: it leads back to GCC's.
#undef _mm512_mask_cmp_ps_mask
#define _mm512_mask_cmp_ps_mask(k, a, b, predicate) __mmask16((k) & _mm512_cmp_ps_mask(a, b, predicate))
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(v, half) emulated::Elements<__m256, __m512>(v).at[half]
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(v, rounding) emulated::halves_of_floats<rounding>(v)
#undef _mm512_maskz_loadu_epi32
#define _mm512_maskz_loadu_epi32(k, p) emulated::load<int32_t, __m512i>(k, p)
