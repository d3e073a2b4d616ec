// bits.h for AVX-512. Comparisons give masks, and a mask is the packed bits; the same masks load and store the last
// channels of a row, which need no loop of their own.
#define BTR_ISA_NAMESPACE avx512
#include <immintrin.h>

#include "bits/generic.inl"
#include "bits/streams.inl"

namespace btr::avx512 {

// As measured on Zen 5: one to eight sequences of reads are within 5% of each other there.
constexpr int kReadStreams = 4, kWriteStreams = 2;
constexpr int64_t kStreamingBytes = 64;
inline void fence() { _mm_sfence(); }

// Bits [0, count) of a mask of 64.
inline uint64_t lowest(int64_t count) { return count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1; }

// f(channel, mask, channels) for 64 channels at a time, and for the rest. Inlined twice, so that whole masks vanish.
template <typename F>
BTR_INLINE void for_each_64(int64_t count, F&& f) {
  int64_t c = 0;
  for (; c + 64 <= count; c += 64) f(c, ~uint64_t(0), int64_t(64));
  if (c < count) f(c, lowest(count - c), count - c);
}

template <int64_t kCount, typename F>
BTR_INLINE void for_each_64(Channels<kCount>, F&& f) {
  static_assert(kCount % 64 == 0, "whole pieces have no rest");
#pragma GCC unroll 8
  for (int64_t c = 0; c < kCount; c += 64) f(c, ~uint64_t(0), int64_t(64));
}

// --- 16 channels as float32, and 32 of the 16-bit floats as they are; masked channels are 0 and not read.

BTR_INLINE __m512 load_16(__mmask16 k, const float* x) { return _mm512_maskz_loadu_ps(k, x); }
BTR_INLINE __m512 load_16(__mmask16 k, const half_t* x) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(k, x)); }
BTR_INLINE __m512 load_16(__mmask16 k, const bfloat16_t* x) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(k, x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

template <bool kStreaming>
BTR_INLINE void store_16(float* out, __mmask16 k, __m512 y) {
  if constexpr (kStreaming)
    _mm512_stream_ps(out, y);
  else
    _mm512_mask_storeu_ps(out, k, y);
}

template <bool kStreaming>
BTR_INLINE void store_16_words(void* out, __mmask16 k, __m256i y) {
  if constexpr (kStreaming)
    _mm256_stream_si256(static_cast<__m256i*>(out), y);
  else
    _mm256_mask_storeu_epi16(out, k, y);
}

template <bool kStreaming>
BTR_INLINE void store_16(half_t* out, __mmask16 k, __m512 y) {
  store_16_words<kStreaming>(out, k, _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT));
}

// Rounded to nearest even; NaN stays NaN.
template <bool kStreaming>
BTR_INLINE void store_16(bfloat16_t* out, __mmask16 k, __m512 y) {
  const __m512i u = _mm512_castps_si512(y), upper = _mm512_srli_epi32(u, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  const __m512i words = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
  store_16_words<kStreaming>(out, k, _mm512_cvtepi32_epi16(words));
}

// --- Bits of 64 channels.

BTR_INLINE __mmask16 not_negative(__mmask16 k, __m512 x) {
  return _mm512_mask_cmp_ps_mask(k, x, _mm512_setzero_ps(), _CMP_GE_OQ);
}

// 16-bit floats are compared as integers: min(abs(v), infinity) == v for 0..infinity, and for -0, whose absolute value
// overflows to itself. One comparison: those into masks, and what joins masks, are the scarce instructions.
BTR_INLINE __mmask32 not_negative(__mmask32 k, __m512i v, int16_t infinity) {
  return _mm512_mask_cmpeq_epi16_mask(k, _mm512_min_epi16(_mm512_abs_epi16(v), _mm512_set1_epi16(infinity)), v);
}

struct AsIs {
  BTR_INLINE uint64_t operator()(uint64_t k, const float* x) const {
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < 64; v += 16) {
      const __mmask16 part = __mmask16(k >> v);
      bits |= uint64_t(not_negative(part, load_16(part, x + v))) << v;
    }
    return bits;
  }
  BTR_INLINE uint64_t operator()(uint64_t k, const bool_t* x) const {
    const __m512i v = _mm512_maskz_loadu_epi8(k, x);
    return _mm512_test_epi8_mask(v, v);
  }
  BTR_INLINE uint64_t operator()(uint64_t k, const half_t* x) const { return words(k, x, 0x7c00); }
  BTR_INLINE uint64_t operator()(uint64_t k, const bfloat16_t* x) const { return words(k, x, 0x7f80); }

 private:
  template <typename T>
  BTR_INLINE static uint64_t words(uint64_t k, const T* x, int16_t infinity) {
    const __mmask32 low = __mmask32(k), high = __mmask32(k >> 32);
    return not_negative(low, _mm512_maskz_loadu_epi16(low, x), infinity) |
           uint64_t(not_negative(high, _mm512_maskz_loadu_epi16(high, x + 32), infinity)) << 32;
  }
};

struct Centred {
  explicit Centred(float value) : mean(value) {}
  template <typename T>
  BTR_INLINE uint64_t operator()(uint64_t k, const T* x) const {
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < 64; v += 16) {
      const __mmask16 part = __mmask16(k >> v);
      bits |= uint64_t(not_negative(part, _mm512_sub_ps(load_16(part, x + v), _mm512_set1_ps(mean)))) << v;
    }
    return bits;
  }
  float mean;
};

template <typename T, typename Count, typename View>
BTR_INLINE void pack_channels(const T* x, Count count, View view, uint8_t* out) {
  for_each_64(count, [&](int64_t c, uint64_t k, int64_t channels) __attribute__((always_inline)) {
    const uint64_t word = view(k, x + c);
    std::memcpy(out + c / 8, &word, size_t(bytes_for(channels)));
  });
}

// --- Signs: flipped where the bit is 0.

BTR_INLINE __m512 with_signs(__m512 x, __mmask16 bits) {
  return _mm512_mask_xor_ps(x, __mmask16(~bits), x, _mm512_set1_ps(-0.0f));
}

BTR_INLINE uint64_t bits_at(const uint8_t* bits, int64_t channels) {
  uint64_t word = 0;
  std::memcpy(&word, bits, size_t(bytes_for(channels)));
  return word;
}

// scale by the signs `word` of up to 64 channels.
template <bool kStreaming>
BTR_INLINE void write_signs(uint64_t word, uint64_t k, const float* scale, float* out) {
#pragma GCC unroll 4
  for (int v = 0; v < 64; v += 16) {
    const __mmask16 part = __mmask16(k >> v);
    if (part) store_16<kStreaming>(out + v, part, with_signs(load_16(part, scale + v), __mmask16(word >> v)));
  }
}

template <bool kStreaming, typename T>
BTR_INLINE void write_signs(uint64_t word, uint64_t k, const T* scale, T* out) {
#pragma GCC unroll 2
  for (int v = 0; v < 64; v += 32) {
    const __mmask32 part = __mmask32(k >> v);
    if (!part) continue;
    const __m512i negative = _mm512_maskz_mov_epi16(__mmask32(~(word >> v)), _mm512_set1_epi16(int16_t(0x8000)));
    const __m512i y = _mm512_xor_si512(_mm512_maskz_loadu_epi16(part, scale + v), negative);
    if constexpr (kStreaming)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out + v), y);
    else
      _mm512_mask_storeu_epi16(out + v, part, y);
  }
}

template <bool kStreaming, typename T, typename Count>
BTR_INLINE void unpack_signs_channels(const uint8_t* bits, Count count, const T* scale, T* out) {
  for_each_64(count, [&](int64_t c, uint64_t k, int64_t channels) __attribute__((always_inline)) {
    write_signs<kStreaming>(bits_at(bits + c / 8, channels), k, scale + c, out + c);
  });
}

template <bool kStreaming, typename T, typename Count>
BTR_INLINE void unpack_affine_channels(const uint8_t* bits, Count count, const float* scale, const float* bias,
                                       float factor, T* out) {
  for_each_64(count, [&](int64_t c, uint64_t k, int64_t channels) __attribute__((always_inline)) {
    const uint64_t word = bits_at(bits + c / 8, channels);
#pragma GCC unroll 4
    for (int v = 0; v < 64; v += 16) {
      const __mmask16 part = __mmask16(k >> v);
      if (!part) continue;
      __m512 y = with_signs(load_16(part, scale + c + v), __mmask16(word >> v));
      y = _mm512_mul_ps(y, _mm512_set1_ps(factor));
      if (bias) y = _mm512_add_ps(y, load_16(part, bias + c + v));
      store_16<kStreaming>(out + c + v, part, y);
    }
  });
}

template <bool kStreaming, typename T, typename Count, typename View>
BTR_INLINE void sign_scale_channels(const T* x, Count count, View view, const T* scale, T* out) {
  for_each_64(count, [&](int64_t c, uint64_t k, int64_t) __attribute__((always_inline)) {
    write_signs<kStreaming>(view(k, x + c), k, scale + c, out + c);
  });
}

// --- Sums of a row
//
// They run in float64, so that no finite input overflows. Conversions would cost more than all the rest, so 64 channels
// are added to 16 sums in float32 first, and again in float64 if that may have gone wrong. It costs a relative error of
// at most 2^-22 of the squares, half of it in their root.

BTR_INLINE __m512d both_halves(__m512 v) {
  return _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}

template <typename T, typename Count>
BTR_INLINE double sum(const T* x, Count count) {
  __m512d sums = _mm512_setzero_pd();
  for_each_64(count, [&](int64_t c, uint64_t k, int64_t) __attribute__((always_inline)) {
    const __m512 first = load_16(__mmask16(k), x + c), second = load_16(__mmask16(k >> 16), x + c + 16);
    const __m512 third = load_16(__mmask16(k >> 32), x + c + 32), fourth = load_16(__mmask16(k >> 48), x + c + 48);
    sums = _mm512_add_pd(sums, both_halves(_mm512_add_ps(_mm512_add_ps(first, second), _mm512_add_ps(third, fourth))));
  });
  const double result = _mm512_reduce_add_pd(sums);
  return std::isfinite(result) ? result : sum_in_float64(x, count);
}

template <typename T, typename Count>
BTR_INLINE double sum_of_squares(const T* x, Count count, float mean) {
  __m512d sums = _mm512_setzero_pd();
  for_each_64(count, [&](int64_t c, uint64_t k, int64_t) __attribute__((always_inline)) {
    __m512 squares = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int v = 0; v < 64; v += 16) {
      const __mmask16 part = __mmask16(k >> v);
      const __m512 centred = _mm512_maskz_sub_ps(part, load_16(part, x + c + v), _mm512_set1_ps(mean));
      squares = _mm512_fmadd_ps(centred, centred, squares);
    }
    sums = _mm512_add_pd(sums, both_halves(squares));
  });
  const double result = _mm512_reduce_add_pd(sums);
  // No square overflowed, and what was lost to underflow is nothing beside the sum. NaN is neither.
  if (result >= 0x1p-80 && result <= 0x1p120) return result;
  return sum_of_squares_in_float64(x, count, mean);
}

}  // namespace btr::avx512

#include "bits/masked.inl"
#include "bits/walk.inl"

namespace btr {

extern const BitsKernels bits_avx512{avx512::pack, avx512::unpack, avx512::binarize, avx512::sign_scale,
                                     avx512::sign_scale_backward_generic, avx512::compress, avx512::expand,
                                     avx512::masks_hold};

}  // namespace btr
