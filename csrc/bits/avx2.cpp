// bits.h for AVX2.
#define BTR_ISA_NAMESPACE avx2
#include <immintrin.h>

#include "bits/generic.inl"

namespace btr {
namespace {

// Four vectors of eight 32-bit masks -> 32 bits in channel order. The two packs interleave 128-bit lanes; the
// permutation undoes it. One movemask for 32 channels instead of four.
inline uint32_t bits_of_masks(__m256i m0, __m256i m1, __m256i m2, __m256i m3) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(m0, m1), _mm256_packs_epi32(m2, m3));
  return uint32_t(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(bytes, order)));
}

inline __m256i is_positive_8(__m256 x) {
  return _mm256_castps_si256(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
}

// Signs of 32 channels. 16-bit floats are compared as integers: >= 0 is 0..infinity, or exactly -0.
inline uint32_t signs_32(const float* x) {
  return bits_of_masks(is_positive_8(_mm256_loadu_ps(x)), is_positive_8(_mm256_loadu_ps(x + 8)),
                       is_positive_8(_mm256_loadu_ps(x + 16)), is_positive_8(_mm256_loadu_ps(x + 24)));
}

inline __m256i positive_16(const uint16_t* x, __m256i infinity) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i in_range = _mm256_andnot_si256(_mm256_cmpgt_epi16(v, infinity),
                                               _mm256_cmpgt_epi16(v, _mm256_set1_epi16(-1)));
  return _mm256_or_si256(in_range, _mm256_cmpeq_epi16(v, _mm256_set1_epi16(int16_t(0x8000))));
}

inline uint32_t positive_32(const uint16_t* x, int16_t infinity) {
  const __m256i limit = _mm256_set1_epi16(infinity);
  const __m256i bytes = _mm256_packs_epi16(positive_16(x, limit), positive_16(x + 16, limit));
  return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0b11011000)));
}

inline uint32_t signs_32(const half_t* x) { return positive_32(&x->bits, 0x7c00); }
inline uint32_t signs_32(const bfloat16_t* x) { return positive_32(&x->bits, 0x7f80); }

inline uint32_t signs_32(const bool_t* x) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return ~uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256())));
}

template <typename T>
void pack_row(const T* x, int64_t d, uint8_t* out) {
  int64_t c = 0;
  for (; c + 32 <= d; c += 32) {
    const uint32_t word = signs_32(x + c);
    std::memcpy(out + c / 8, &word, 4);
  }
  if (c < d) avx2::pack_row_generic(x + c, d - c, out + c / 8);
}

template <typename T>
void pack_rows(const T* x, int64_t rows, int64_t d, uint8_t* out) {
  // Without pad bits the rows are one long row.
  if (d % 8 == 0) return pack_row(x, rows * d, out);
  for (int64_t r = 0; r < rows; ++r) pack_row(x + r * d, d, out + r * bytes_for(d));
}

void pack(const void* x, DType dtype, int64_t rows, int64_t d, uint8_t* out) {
  if (dtype == DType::boolean) pack_rows(static_cast<const bool_t*>(x), rows, d, out);
  avx2::with_float_type(dtype, [&](auto* type) {
    pack_rows(static_cast<const std::remove_pointer_t<decltype(type)>*>(x), rows, d, out);
  });
}

template <bool kStreaming>
inline void store_8(float* out, __m256 y) {
  if constexpr (kStreaming)
    _mm256_stream_ps(out, y);
  else
    _mm256_storeu_ps(out, y);
}

template <bool kStreaming>
inline void store_8(half_t* out, __m256 y) {
  const __m128i h = _mm256_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT);
  if constexpr (kStreaming)
    _mm_stream_si128(reinterpret_cast<__m128i*>(out), h);
  else
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), h);
}

template <bool kStreaming>
inline void store_8(bfloat16_t* out, __m256 y) {
  const __m256i u = _mm256_castps_si256(y);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(y, y, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40)), nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0b1000);
  if constexpr (kStreaming)
    _mm_stream_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(packed));
  else
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(packed));
}

// kFull: there is a bias or a token scale. Without them a channel costs a shift, an and, an xor and a store.
template <typename T, bool kStreaming, bool kFull>
void unpack_row(const uint8_t* bits, int64_t d, const float* scale, const float* bias, float token_scale, T* out) {
  const __m256i sign = _mm256_set1_epi32(int32_t(0x80000000));
  const __m256i lane = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  const __m256 factor = _mm256_set1_ps(token_scale);
  int64_t c = 0;
  for (; c + 32 <= d; c += 32) {
    uint32_t word;
    std::memcpy(&word, bits + c / 8, 4);
    const __m256i inverted = _mm256_set1_epi32(int32_t(~word));
    for (int k = 0; k < 4; ++k) {
      const __m256i shift = _mm256_sub_epi32(lane, _mm256_set1_epi32(8 * k));
      const __m256 negative = _mm256_castsi256_ps(_mm256_and_si256(_mm256_sllv_epi32(inverted, shift), sign));
      const __m256 s = scale ? _mm256_loadu_ps(scale + c + 8 * k) : _mm256_set1_ps(1.0f);
      __m256 y = _mm256_xor_ps(s, negative);
      if constexpr (kFull) {
        y = _mm256_mul_ps(y, factor);
        if (bias) y = _mm256_add_ps(y, _mm256_loadu_ps(bias + c + 8 * k));
      }
      store_8<kStreaming>(out + c + 8 * k, y);
    }
  }
  avx2::unpack_row_generic(bits, c, d, scale, bias, token_scale, out);
}

template <typename T, bool kStreaming, bool kFull>
void unpack_rows(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
                 const float* token_scale, T* out) {
  for (int64_t r = 0; r < rows; ++r)
    unpack_row<T, kStreaming, kFull>(bits + r * bytes_for(d), d, scale, bias, token_scale ? token_scale[r] : 1.0f,
                                     out + r * d);
  if (kStreaming) _mm_sfence();
}

void unpack(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
            const float* token_scale, void* out, DType dtype, bool streaming) {
  avx2::with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* typed = static_cast<T*>(out);
    // Streaming stores need aligned addresses in every row.
    const bool stream = streaming && reinterpret_cast<uintptr_t>(out) % 32 == 0 && d * sizeof(T) % 32 == 0;
    const bool full = bias || token_scale;
    auto run = stream ? (full ? unpack_rows<T, true, true> : unpack_rows<T, true, false>)
                      : (full ? unpack_rows<T, false, true> : unpack_rows<T, false, false>);
    run(bits, rows, d, scale, bias, token_scale, typed);
  });
}

void pack_centred(const float* x, float mean, int64_t d, uint8_t* out) {
  const __m256 m = _mm256_set1_ps(mean);
  const auto masks = [m](const float* p) { return is_positive_8(_mm256_sub_ps(_mm256_loadu_ps(p), m)); };
  int64_t c = 0;
  for (; c + 32 <= d; c += 32) {
    const uint32_t word = bits_of_masks(masks(x + c), masks(x + c + 8), masks(x + c + 16), masks(x + c + 24));
    std::memcpy(out + c / 8, &word, 4);
  }
  if (c < d) avx2::pack_centred_generic(x + c, mean, d - c, out + c / 8);
}

void binarize(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, double eps, uint8_t* bits,
              float* magnitude) {
  avx2::binarize_generic(x, dtype, rows, d, layer, eps, bits, magnitude, pack_centred);
}

}  // namespace

extern const BitsKernels bits_avx2{pack, unpack, binarize, avx2::sign_scale_generic,
                                   avx2::sign_scale_backward_generic};

}  // namespace btr
