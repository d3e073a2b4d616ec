// bits.h for NEON, part of every 64-bit ARM CPU. Not measured: the streams are those of AVX2.
#define BTR_ISA_NAMESPACE neon
#include <arm_neon.h>

#include "bits/generic.inl"

namespace btr::neon {

constexpr int kReadStreams = 4, kWriteStreams = 2;

// There are no streaming stores; `kStreaming` below means nothing.
constexpr int64_t kStreamingBytes = 16;
inline void fence() {}

// --- Vectors of four float32 or eight of the 16-bit floats.

inline const uint16_t* words(const half_t* x) { return &x->bits; }
inline const uint16_t* words(const bfloat16_t* x) { return &x->bits; }
inline uint16_t* words(half_t* x) { return &x->bits; }
inline uint16_t* words(bfloat16_t* x) { return &x->bits; }

inline float32x4_t load_4(const float* x) { return vld1q_f32(x); }
inline float32x4_t load_4(const half_t* x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(words(x)))); }
inline float32x4_t load_4(const bfloat16_t* x) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(words(x)), 16)); }

inline void store_4(float* out, float32x4_t y) { vst1q_f32(out, y); }
inline void store_4(half_t* out, float32x4_t y) { vst1_u16(words(out), vreinterpret_u16_f16(vcvt_f16_f32(y))); }

// Rounded to nearest even; NaN stays NaN.
inline void store_4(bfloat16_t* out, float32x4_t y) {
  const uint32x4_t u = vreinterpretq_u32_f32(y), upper = vshrq_n_u32(u, 16);
  const uint32x4_t odd = vandq_u32(upper, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
  const uint32x4_t nan = vorrq_u32(upper, vdupq_n_u32(0x40));
  vst1_u16(words(out), vmovn_u32(vbslq_u32(vceqq_f32(y, y), rounded, nan)));
}

// --- Masks of the channels that are >= 0, as wide as the channels, and 16 of them as bytes.

// 16-bit floats are compared as integers: min(abs(v), infinity) == v for 0..infinity, and for -0, whose absolute value
// overflows to itself.
inline uint16x8_t not_negative(uint16x8_t x, int16_t infinity) {
  const int16x8_t v = vreinterpretq_s16_u16(x);
  return vceqq_s16(vminq_s16(vabsq_s16(v), vdupq_n_s16(infinity)), v);
}

inline uint16x8_t narrow(uint32x4_t low, uint32x4_t high) { return vcombine_u16(vmovn_u32(low), vmovn_u32(high)); }
inline uint8x16_t narrow(uint16x8_t low, uint16x8_t high) { return vcombine_u8(vmovn_u16(low), vmovn_u16(high)); }

struct AsIs {
  uint32x4_t operator()(const float* x) const { return vcgezq_f32(load_4(x)); }
  uint16x8_t operator()(const half_t* x) const { return not_negative(vld1q_u16(words(x)), 0x7c00); }
  uint16x8_t operator()(const bfloat16_t* x) const { return not_negative(vld1q_u16(words(x)), 0x7f80); }
  template <typename T>
  bool one(T x) const {
    return is_positive(x);
  }
};

struct Centred {
  explicit Centred(float value) : mean(value) {}
  uint32x4_t operator()(const float* x) const { return four(x); }
  template <typename T>
  uint16x8_t operator()(const T* x) const {
    return narrow(four(x), four(x + 4));
  }
  template <typename T>
  bool one(T x) const {
    return to_float(x) - mean >= 0;
  }

 private:
  template <typename T>
  uint32x4_t four(const T* x) const {
    return vcgezq_f32(vsubq_f32(load_4(x), vdupq_n_f32(mean)));
  }
  float mean;
};

template <typename T, typename View>
inline uint8x16_t mask_16(const T* x, View view) {
  if constexpr (sizeof(T) == 4)
    return narrow(narrow(view(x), view(x + 4)), narrow(view(x + 8), view(x + 12)));
  else
    return narrow(view(x), view(x + 8));
}

inline uint8x16_t mask_16(const bool_t* x, AsIs) {
  const uint8x16_t v = vld1q_u8(&x->value);
  return vtstq_u8(v, v);
}

alignas(16) constexpr uint8_t kBitOfByte[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};

// Each channel's mask becomes its bit; three rounds of pairwise sums add up the eight bits of a byte.
template <typename T, typename View>
inline void pack_channels(const T* x, int64_t count, View view, uint8_t* out) {
  const uint8x16_t bit = vld1q_u8(kBitOfByte);
  int64_t c = 0;
  for (; c + 64 <= count; c += 64) {
    const uint8x16_t first = vpaddq_u8(vandq_u8(mask_16(x + c, view), bit), vandq_u8(mask_16(x + c + 16, view), bit));
    const uint8x16_t second =
        vpaddq_u8(vandq_u8(mask_16(x + c + 32, view), bit), vandq_u8(mask_16(x + c + 48, view), bit));
    const uint8x16_t quarters = vpaddq_u8(first, second);
    vst1_u8(out + c / 8, vget_low_u8(vpaddq_u8(quarters, quarters)));
  }
  if (c < count) pack_channels_generic(x + c, count - c, [view](T value) { return view.one(value); }, out + c / 8);
}

// --- Signs: flipped where the mask is 0.

inline float32x4_t with_signs(float32x4_t x, uint32x4_t mask) {
  return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), vbicq_u32(vdupq_n_u32(0x80000000), mask)));
}

inline void write_signs(const float* scale, uint32x4_t mask, float* out) {
  store_4(out, with_signs(load_4(scale), mask));
}

template <typename T>
inline void write_signs(const T* scale, uint16x8_t mask, T* out) {
  vst1q_u16(words(out), veorq_u16(vld1q_u16(words(scale)), vbicq_u16(vdupq_n_u16(0x8000), mask)));
}

// Masks of the channels of a byte: the lower four, the upper four, all eight.
inline uint32x4_t lower_mask(uint8_t byte) {
  const uint32_t bit[4] = {1, 2, 4, 8};
  return vtstq_u32(vdupq_n_u32(byte), vld1q_u32(bit));
}
inline uint32x4_t upper_mask(uint8_t byte) { return lower_mask(byte >> 4); }
inline uint16x8_t mask_of(uint8_t byte) {
  const uint16_t bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vtstq_u16(vdupq_n_u16(byte), vld1q_u16(bit));
}

template <bool kStreaming, typename T>
inline void unpack_signs_channels(const uint8_t* bits, int64_t count, const T* scale, T* out) {
  int64_t c = 0;
  for (; c + 8 <= count; c += 8) {
    if constexpr (sizeof(T) == 4) {
      write_signs(scale + c, lower_mask(bits[c / 8]), out + c);
      write_signs(scale + c + 4, upper_mask(bits[c / 8]), out + c + 4);
    } else {
      write_signs(scale + c, mask_of(bits[c / 8]), out + c);
    }
  }
  for (; c < count; ++c) out[c] = with_sign(scale[c], bit_of(bits, c));
}

template <bool kStreaming, typename T>
inline void unpack_affine_channels(const uint8_t* bits, int64_t count, const float* scale, const float* bias,
                                   float factor, T* out) {
  const auto four = [&](int64_t c, uint32x4_t mask) {
    float32x4_t y = vmulq_n_f32(with_signs(load_4(scale + c), mask), factor);
    if (bias) y = vaddq_f32(y, load_4(bias + c));
    store_4(out + c, y);
  };
  int64_t c = 0;
  for (; c + 8 <= count; c += 8) {
    four(c, lower_mask(bits[c / 8]));
    four(c + 4, upper_mask(bits[c / 8]));
  }
  unpack_row_generic(bits, c, count, scale, bias, factor, out);
}

template <bool kStreaming, typename T, typename View>
inline void sign_scale_channels(const T* x, int64_t count, View view, const T* scale, T* out) {
  constexpr int64_t kLanes = 16 / int64_t(sizeof(T));
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) write_signs(scale + c, view(x + c), out + c);
  for (; c < count; ++c) out[c] = with_sign(scale[c], view.one(x[c]));
}

// --- Sums in float64, so that no finite input overflows.

template <typename T>
inline double sum(const T* x, int64_t count) {
  float64x2_t low = vdupq_n_f64(0), high = low;
  int64_t c = 0;
  for (; c + 4 <= count; c += 4) {
    const float32x4_t v = load_4(x + c);
    low = vaddq_f64(low, vcvt_f64_f32(vget_low_f32(v)));
    high = vaddq_f64(high, vcvt_high_f64_f32(v));
  }
  double result = vaddvq_f64(vaddq_f64(low, high));
  for (; c < count; ++c) result += to_float(x[c]);
  return result;
}

template <typename T>
inline double sum_of_squares(const T* x, int64_t count, float mean) {
  const float64x2_t m = vdupq_n_f64(mean);
  float64x2_t low = vdupq_n_f64(0), high = low;
  int64_t c = 0;
  for (; c + 4 <= count; c += 4) {
    const float32x4_t v = load_4(x + c);
    const float64x2_t a = vsubq_f64(vcvt_f64_f32(vget_low_f32(v)), m), b = vsubq_f64(vcvt_high_f64_f32(v), m);
    low = vfmaq_f64(low, a, a);
    high = vfmaq_f64(high, b, b);
  }
  double result = vaddvq_f64(vaddq_f64(low, high));
  for (; c < count; ++c) {
    const double centred = double(to_float(x[c])) - mean;
    result += centred * centred;
  }
  return result;
}

}  // namespace btr::neon

#include "bits/masked.inl"
#include "bits/walk.inl"

namespace btr {

extern const BitsKernels bits_neon{neon::pack, neon::unpack, neon::binarize, neon::sign_scale,
                                   neon::sign_scale_backward_generic, neon::compress, neon::expand,
                                   neon::masks_hold};

}  // namespace btr
