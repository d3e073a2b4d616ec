// bits.h for AVX2.
#define BTR_ISA_NAMESPACE avx2
#include <immintrin.h>

#include "bits/generic.inl"
#include "bits/streams.inl"

namespace btr::avx2 {

// Sequences of addresses in flight (streams.inl), as measured on Zen 3. Streaming stores: more than two sequences of
// them run out of write-combining buffers, and a kernel that reads little needs only one.
constexpr int kReadStreams = 4;
constexpr int kWriteStreams = 2;
constexpr int64_t kStreamingBytes = 32;
inline void fence() { _mm_sfence(); }

// How far ahead of its loads a kernel with streaming stores fetches: its stores slow the hardware prefetchers down.
constexpr int64_t kPrefetchBytes = 1024;

// --- Vectors of 32 bytes: 8 float32 or 16 of the 16-bit floats.

template <typename T>
constexpr int64_t kLanes = 32 / int64_t(sizeof(T));

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

template <bool kStreaming>
inline void store(void* p, __m256i v) {
  if constexpr (kStreaming)
    _mm256_stream_si256(static_cast<__m256i*>(p), v);
  else
    _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}

template <typename T>
inline __m256i sign_bits() {
  if constexpr (sizeof(T) == 4)
    return _mm256_set1_epi32(int32_t(0x80000000));
  else
    return _mm256_set1_epi16(int16_t(0x8000));
}

inline __m256 load_8(const float* x) { return _mm256_loadu_ps(x); }
inline __m256 load_8(const half_t* x) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))); }
inline __m256 load_8(const bfloat16_t* x) {
  const __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}

// --- Masks of the channels that are >= 0, and 32 of them as bits.

inline __m256i not_negative(__m256 x) {
  return _mm256_castps_si256(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
}

// 16-bit floats are compared as integers: min(abs(v), infinity) == v for 0..infinity, and for -0, whose absolute value
// overflows to itself.
inline __m256i not_negative_16(__m256i v, int16_t infinity) {
  return _mm256_cmpeq_epi16(_mm256_min_epi16(_mm256_abs_epi16(v), _mm256_set1_epi16(infinity)), v);
}

// Narrows masks of 32 bits to 16; the permutation undoes the interleaving of 128-bit halves.
inline __m256i narrow(__m256i low, __m256i high) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0b11011000);
}

// How a kernel sees x: as it is, or less the row's mean.
struct AsIs {
  __m256i operator()(const float* x) const { return not_negative(load_8(x)); }
  __m256i operator()(const half_t* x) const { return not_negative_16(load(x), 0x7c00); }
  __m256i operator()(const bfloat16_t* x) const { return not_negative_16(load(x), 0x7f80); }
  template <typename T>
  bool one(T x) const {
    return is_positive(x);
  }
};

struct Centred {
  __m256 mean;
  explicit Centred(float value) : mean(_mm256_set1_ps(value)) {}
  __m256i operator()(const float* x) const { return not_negative(_mm256_sub_ps(load_8(x), mean)); }
  template <typename T>
  __m256i operator()(const T* x) const {
    return narrow(not_negative(_mm256_sub_ps(load_8(x), mean)), not_negative(_mm256_sub_ps(load_8(x + 8), mean)));
  }
  template <typename T>
  bool one(T x) const {
    return to_float(x) - _mm256_cvtss_f32(mean) >= 0;
  }
};

template <typename T, typename View>
inline uint32_t bits_of_32(const T* x, View view) {
  if constexpr (sizeof(T) == 4) {
    // The two packs interleave 128-bit halves; the permutation undoes it. One movemask for 32 channels.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(view(x), view(x + 8)),
                                             _mm256_packs_epi32(view(x + 16), view(x + 24)));
    return uint32_t(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(bytes, order)));
  } else {
    const __m256i bytes = _mm256_packs_epi16(view(x), view(x + 16));
    return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0b11011000)));
  }
}

inline uint32_t bits_of_32(const bool_t* x, AsIs) {
  return ~uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(load(x), _mm256_setzero_si256())));
}

template <typename T, typename Count, typename View>
BTR_INLINE void pack_channels(const T* x, Count count, View view, uint8_t* out) {
  int64_t c = 0;
  for (; c + 32 <= count; c += 32) {
    const uint32_t word = bits_of_32(x + c, view);
    std::memcpy(out + c / 8, &word, 4);
  }
  if (c < count) pack_channels_generic(x + c, count - c, [view](T value) { return view.one(value); }, out + c / 8);
}

// --- unpack

// Sign bits of one vector of the 32 channels in a word (in all elements of `word`): set where the bit is 0.
template <typename T>
inline __m256i negative(__m256i word, int vector) {
  if constexpr (sizeof(T) == 4) {
    const __m256i lane = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    const __m256i shift = _mm256_sub_epi32(lane, _mm256_set1_epi32(8 * vector));
    return _mm256_andnot_si256(_mm256_sllv_epi32(word, shift), sign_bits<T>());
  } else {
    // There is no shift by lane of 16 bits, but a product by a power of two.
    const __m256i power = _mm256_setr_epi16(int16_t(0x8000), 0x4000, 0x2000, 0x1000, 0x800, 0x400, 0x200, 0x100, 0x80,
                                            0x40, 0x20, 0x10, 8, 4, 2, 1);
    const __m256i half = _mm256_shuffle_epi8(word, _mm256_set1_epi16(vector ? 0x0302 : 0x0100));
    return _mm256_andnot_si256(_mm256_mullo_epi16(half, power), sign_bits<T>());
  }
}

inline __m256i word_at(const uint8_t* bits) {
  int32_t word;
  std::memcpy(&word, bits, 4);
  return _mm256_set1_epi32(word);
}

template <bool kStreaming>
inline void store_8(float* out, __m256 y) {
  store<kStreaming>(out, _mm256_castps_si256(y));
}

template <bool kStreaming>
inline void store_16_bytes(void* out, __m128i v) {
  if constexpr (kStreaming)
    _mm_stream_si128(static_cast<__m128i*>(out), v);
  else
    _mm_storeu_si128(static_cast<__m128i*>(out), v);
}

template <bool kStreaming>
inline void store_8(half_t* out, __m256 y) {
  store_16_bytes<kStreaming>(out, _mm256_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT));
}

template <bool kStreaming>
inline void store_8(bfloat16_t* out, __m256 y) {
  const __m256i u = _mm256_castps_si256(y);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(y, y, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40)), nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0b1000);
  store_16_bytes<kStreaming>(out, _mm256_castsi256_si128(packed));
}

template <bool kStreaming, typename T, typename Count>
BTR_INLINE void unpack_signs_channels(const uint8_t* bits, Count count, const T* scale, T* out) {
  int64_t c = 0;
  for (; c + 32 <= count; c += 32) {
    const __m256i word = word_at(bits + c / 8);
    for (int k = 0; k < 32 / kLanes<T>; ++k) {
      const int64_t i = c + k * kLanes<T>;
      store<kStreaming>(out + i, _mm256_xor_si256(load(scale + i), negative<T>(word, k)));
    }
  }
  for (; c < count; ++c) out[c] = with_sign(scale[c], bit_of(bits, c));
}

template <bool kStreaming, typename T, typename Count>
BTR_INLINE void unpack_affine_channels(const uint8_t* bits, Count count, const float* scale, const float* bias,
                                   float factor, T* out) {
  int64_t c = 0;
  for (; c + 32 <= count; c += 32) {
    const __m256i word = word_at(bits + c / 8);
    for (int k = 0; k < 4; ++k) {
      const int64_t i = c + 8 * k;
      __m256 v = _mm256_xor_ps(_mm256_loadu_ps(scale + i), _mm256_castsi256_ps(negative<float>(word, k)));
      v = _mm256_mul_ps(v, _mm256_set1_ps(factor));
      if (bias) v = _mm256_add_ps(v, _mm256_loadu_ps(bias + i));
      store_8<kStreaming>(out + i, v);
    }
  }
  unpack_row_generic(bits, c, count, scale, bias, factor, out);
}

// --- Sums of a row

// They run in float64, so that no finite input overflows. Conversions would cost more than all the rest (Zen 3 starts
// one for four channels a cycle), so four channels at a time are added in float32 first, and again in float64 if that
// may have gone wrong. It costs a relative error of at most 2^-22 of the squares, half of it in their root.

inline double total(__m256d sums) {
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(sums), _mm256_extractf128_pd(sums, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}

inline __m256d low_half(__m256 v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
inline __m256d high_half(__m256 v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }

template <typename T, typename Count>
BTR_INLINE double sum(const T* x, Count count) {
  __m256d low = _mm256_setzero_pd(), high = low;
  int64_t c = 0;
  for (; c + 32 <= count; c += 32) {
    const __m256 four = _mm256_add_ps(_mm256_add_ps(load_8(x + c), load_8(x + c + 8)),
                                      _mm256_add_ps(load_8(x + c + 16), load_8(x + c + 24)));
    low = _mm256_add_pd(low, low_half(four));
    high = _mm256_add_pd(high, high_half(four));
  }
  double result = total(_mm256_add_pd(low, high));
  if (!std::isfinite(result)) result = sum_in_float64(x, c);
  for (; c < count; ++c) result += to_float(x[c]);
  return result;
}

template <typename T, typename Count>
BTR_INLINE double sum_of_squares(const T* x, Count count, float mean) {
  const __m256 m = _mm256_set1_ps(mean);
  __m256d low = _mm256_setzero_pd(), high = low;
  int64_t c = 0;
  for (; c + 32 <= count; c += 32) {
    __m256 four = _mm256_setzero_ps();
    for (int k = 0; k < 4; ++k) {
      const __m256 centred = _mm256_sub_ps(load_8(x + c + 8 * k), m);
      four = _mm256_fmadd_ps(centred, centred, four);
    }
    low = _mm256_add_pd(low, low_half(four));
    high = _mm256_add_pd(high, high_half(four));
  }
  double result = total(_mm256_add_pd(low, high));
  // No square overflowed, and what was lost to underflow is nothing beside the sum. NaN is neither.
  if (!(result >= 0x1p-80 && result <= 0x1p120)) result = sum_of_squares_in_float64(x, c, mean);
  for (; c < count; ++c) {
    const double centred = to_float(x[c]) - mean;
    result += centred * centred;
  }
  return result;
}

// --- sign_scale

template <bool kStreaming, typename T, typename Count, typename View>
BTR_INLINE void sign_scale_channels(const T* x, Count count, View view, const T* scale, T* out) {
  int64_t c = 0;
  for (; c + kLanes<T> <= count; c += kLanes<T>) {
    if (kStreaming && c % (2 * kLanes<T>) == 0)
      _mm_prefetch(reinterpret_cast<const char*>(x + c) + kPrefetchBytes, _MM_HINT_NTA);
    store<kStreaming>(out + c, _mm256_xor_si256(load(scale + c), _mm256_andnot_si256(view(x + c), sign_bits<T>())));
  }
  for (; c < count; ++c) out[c] = with_sign(scale[c], view.one(x[c]));
}

}  // namespace btr::avx2

#include "bits/masked.inl"
#include "bits/walk.inl"

namespace btr {

extern const BitsKernels bits_avx2{avx2::pack, avx2::unpack, avx2::binarize, avx2::sign_scale,
                                   avx2::sign_scale_backward_generic, avx2::compress, avx2::expand, avx2::masks_hold};

}  // namespace btr
