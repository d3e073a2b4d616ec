// Kernels of bits.h in plain C++, compiled once for each instruction set, which may replace some by intrinsics.

#include <cmath>
#include <type_traits>

#include "bits/bits.h"
#include "core/rows.h"
#include "core/scratch.h"

namespace btr::BTR_ISA_NAMESPACE {

inline bool is_positive(float x) { return x >= 0; }
inline bool is_positive(bool_t x) { return x.value != 0; }
inline bool is_positive(half_t x) { return x.bits <= 0x7c00 || x.bits == 0x8000; }
inline bool is_positive(bfloat16_t x) { return x.bits <= 0x7f80 || x.bits == 0x8000; }

// Bits of `count` channels, 1 where is_one(value).
template <typename T, typename F>
inline void pack_channels_generic(const T* x, int64_t count, F is_one, uint8_t* out) {
  for (int64_t c = 0; c < count; c += 8) {
    const int64_t in_byte = count - c < 8 ? count - c : 8;
    unsigned byte = 0;
    for (int64_t i = 0; i < in_byte; ++i) byte |= unsigned(is_one(x[c + i])) << i;
    out[c / 8] = uint8_t(byte);
  }
}

template <typename T>
void pack_row_generic(const T* x, int64_t d, uint8_t* out) {
  pack_channels_generic(x, d, [](T value) { return is_positive(value); }, out);
}

inline bool bit_of(const uint8_t* bits, int64_t c) { return bits[c / 8] >> (c % 8) & 1; }

inline float with_sign(float x, bool positive) { return positive ? x : -x; }
inline half_t with_sign(half_t x, bool positive) { return {uint16_t(positive ? x.bits : x.bits ^ 0x8000)}; }
inline bfloat16_t with_sign(bfloat16_t x, bool positive) { return {uint16_t(positive ? x.bits : x.bits ^ 0x8000)}; }

template <typename T>
void unpack_row_generic(const uint8_t* bits, int64_t begin, int64_t d, const float* scale, const float* bias,
                        float token_scale, T* out) {
  for (int64_t c = begin; c < d; ++c) {
    float y = with_sign(token_scale, bit_of(bits, c));
    if (scale) y *= scale[c];
    if (bias) y += bias[c];
    out[c] = from_float<T>(y);
  }
}

// Sixteen partial sums, so that the compiler may use vectors without reordering a single sum.
template <typename F>
double sum_channels(int64_t d, F&& term) {
  constexpr int kLanes = 16;
  double lanes[kLanes] = {};
  const int64_t whole = d / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes)
    for (int i = 0; i < kLanes; ++i) lanes[i] += term(c + i);
  for (int64_t c = whole; c < d; ++c) lanes[c - whole] += term(c);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

// Not inlined: what kernels that sum in float32 fall back to where that overflows.
template <typename T>
__attribute__((noinline)) double sum_in_float64(const T* x, int64_t count) {
  return sum_channels(count, [x](int64_t c) { return double(to_float(x[c])); });
}

template <typename T>
__attribute__((noinline)) double sum_of_squares_in_float64(const T* x, int64_t count, float mean) {
  return sum_channels(count, [x, mean](int64_t c) {
    const double centred = double(to_float(x[c])) - mean;
    return centred * centred;
  });
}

inline float mean_of(const float* x, int64_t d) {
  return float(sum_in_float64(x, d) / double(d));
}

// sqrt(mean((x - mean)^2) + eps)
inline float magnitude_of(const float* x, int64_t d, float mean, double eps) {
  return float(std::sqrt(sum_of_squares_in_float64(x, d, mean) / double(d) + eps));
}

inline void binarize_generic(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, double eps,
                             uint8_t* bits, float* magnitude,
                             void (*pack_centred)(const float* x, float mean, int64_t d, uint8_t* out)) {
  Scratch scratch;
  float* buffer = scratch.get<float>(d);
  with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = load_row(static_cast<const T*>(x) + r * d, d, buffer);
      const float mean = layer ? mean_of(row, d) : 0;
      pack_centred(row, mean, d, bits + r * bytes_for(d));
      if (magnitude) magnitude[r] = magnitude_of(row, d, mean, eps);
    }
  });
}

// Signs of x - mean; not x >= mean, which differs where both are infinite.
inline void pack_centred_generic(const float* x, float mean, int64_t d, uint8_t* out) {
  pack_channels_generic(x, d, [mean](float value) { return value - mean >= 0; }, out);
}

inline void sign_scale_generic(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, const float* scale,
                               void* out, bool) {
  Scratch scratch;
  float *buffer = scratch.get<float>(d), *staging = scratch.get<float>(d);
  with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t r = 0; r < rows; ++r) {
      T* result = static_cast<T*>(out) + r * d;
      const float* row = load_row(static_cast<const T*>(x) + r * d, d, buffer);
      const float mean = layer ? mean_of(row, d) : 0;
      float* y = staging_row(result, staging);
      for (int64_t c = 0; c < d; ++c) y[c] = with_sign(scale[c], row[c] - mean >= 0);
      store_row(y, result, d);
    }
  });
}

// exp(x) for x <= 0 within 2 units in the last place, without branches, so that loops over it become vector code.
inline float exp_of_negative(float x) {
  x = x < -87.0f ? -87.0f : x;  // the least normal result
  const float k = std::nearbyint(x * 1.44269504f);
  const float r = (x - k * 0.693145752f) - k * 1.42860677e-6f;  // ln 2 in two parts: k times the first is exact
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * float_from_bits(uint32_t(int32_t(k) + 127) << 23);
}

// 1 - tanh(x)^2 = 4 u / (1 + u)^2 with u = exp(-2 abs(x)): no cancellation, unlike the left side.
inline float tanh_slope(float x) {
  const float u = exp_of_negative(-2 * std::fabs(x));
  return 4 * u / ((1 + u) * (1 + u));
}

inline void sign_scale_backward_generic(const void* grad, const void* x, DType dtype, int64_t rows, int64_t d,
                                        const float* scale, const SignScaleBackward& options, void* grad_x,
                                        float* grad_scale) {
  Scratch scratch;
  float *x_buffer = scratch.get<float>(d), *g_buffer = scratch.get<float>(d), *staging = scratch.get<float>(d);
  float* normalised = scratch.get<float>(d);
  const bool layer = options.norm == Norm::layer;
  const float limit = float(options.limit);
  with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = load_row(static_cast<const T*>(x) + r * d, d, x_buffer);
      const float* g = load_row(static_cast<const T*>(grad) + r * d, d, g_buffer);
      T* result = static_cast<T*>(grad_x) + r * d;
      float* y = staging_row(result, staging);

      const float mean = layer ? mean_of(row, d) : 0;
      const float size = options.norm == Norm::none ? 1 : magnitude_of(row, d, mean, options.eps);
      for (int64_t c = 0; c < d; ++c) {
        grad_scale[c] += row[c] - mean >= 0 ? g[c] : -g[c];
        normalised[c] = (row[c] - mean) / size;
      }
      if (options.gradient == SignGradient::straight_through) {
        for (int64_t c = 0; c < d; ++c) y[c] = g[c] * scale[c] * (std::fabs(normalised[c]) <= limit ? 1.0f : 0.0f);
      } else {
        for (int64_t c = 0; c < d; ++c) {
          y[c] = g[c] * scale[c] * (limit * tanh_slope(limit * normalised[c]));
        }
      }
      if (options.norm != Norm::none) {
        const float along = float(
            sum_channels(d, [&](int64_t c) { return double(y[c]) * normalised[c]; }) / double(d));
        const float shared = layer ? mean_of(y, d) : 0;
        for (int64_t c = 0; c < d; ++c) y[c] = (y[c] - shared - normalised[c] * along) / size;
      }
      store_row(y, result, d);
    }
  });
}

}  // namespace btr::BTR_ISA_NAMESPACE
