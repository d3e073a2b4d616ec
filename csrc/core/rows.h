// Rows of any float type as rows of float32 and back, for kernels that compute in float32.
//
// Included by every `<family>/<isa>.cpp`, compiled there with that file's flags into the namespace BTR_ISA_NAMESPACE,
// so that no two instruction sets ever share an instantiation.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/scratch.h"
#include "core/types.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace btr::BTR_ISA_NAMESPACE {

inline float float_from_bits(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline uint32_t bits_from_float(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

inline float to_float(float x) { return x; }

inline float to_float(bfloat16_t x) { return float_from_bits(uint32_t(x.bits) << 16); }

inline float to_float(half_t x) {
#ifdef __F16C__
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return float_from_bits(sign | 0x7f800000 | (rest & 0x007fffff));  // infinity, NaN
  // Moving the exponent bias by a multiplication also normalises denormals.
  return float_from_bits(bits_from_float(float_from_bits(rest) * 0x1p112f) | sign);
#endif
}

template <typename T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

// Round to nearest even; NaN stays NaN.
template <>
inline bfloat16_t from_float<bfloat16_t>(float x) {
  const uint32_t u = bits_from_float(x);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t((u >> 16) | 0x0040)};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

template <>
inline half_t from_float<half_t>(float x) {
#ifdef __F16C__
  return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t u = bits_from_float(x);
  const uint32_t sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (u >= 0x47800000) return {uint16_t(sign | 0x7c00)};  // 65536 and more: infinity
  if (u < 0x38800000) {                                   // below the least normal half
    // Adding 0.5 leaves the rounded denormal in the low bits of the sum.
    return {uint16_t(sign | (bits_from_float(float_from_bits(u) + 0.5f) - 0x3f000000))};
  }
  u += 0x0fff + ((u >> 13) & 1);
  return {uint16_t(sign | ((u - 0x38000000) >> 13))};
#endif
}

// A row as float32: the row itself where it is float32 already, else converted into `buffer`.
inline const float* load_row(const float* row, int64_t, float*) { return row; }

template <typename T>
const float* load_row(const T* row, int64_t d, float* buffer) {
  for (int64_t c = 0; c < d; ++c) buffer[c] = to_float(row[c]);
  return buffer;
}

// Where to compute a float32 row that `store_row` then converts into `row`.
inline float* staging_row(float* row, float*) { return row; }
template <typename T>
float* staging_row(T*, float* buffer) {
  return buffer;
}

inline void store_row(const float*, float*, int64_t) {}
template <typename T>
void store_row(const float* buffer, T* row, int64_t d) {
  for (int64_t c = 0; c < d; ++c) row[c] = from_float<T>(buffer[c]);
}

// A float32 row in another type: the row itself where that is float32.
template <typename T>
const T* row_as(const float* row, int64_t d, Scratch& scratch) {
  if constexpr (std::is_same_v<T, float>) {
    return row;
  } else {
    T* converted = scratch.get<T>(d);
    store_row(row, converted, d);
    return converted;
  }
}

// Calls f with a null pointer of the element type that `type` names.
template <typename F>
void with_float_type(DType type, F&& f) {
  if (type == DType::f32) f(static_cast<float*>(nullptr));
  if (type == DType::f16) f(static_cast<half_t*>(nullptr));
  if (type == DType::bf16) f(static_cast<bfloat16_t*>(nullptr));
}

}  // namespace btr::BTR_ISA_NAMESPACE
