// bits.h for AVX2.
#define BTR_ISA_NAMESPACE avx2
#include <immintrin.h>

#include "bits/generic.inl"
#include "bits/streams.inl"

namespace btr {
namespace {

// Sequences of addresses in flight (streams.inl), as measured on Zen 3. Streaming stores: more than two sequences of
// them run out of write-combining buffers, and a kernel that reads little needs only one.
constexpr int kReadStreams = 4;
constexpr int kWriteStreams = 2;

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
    return avx2::is_positive(x);
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
    return avx2::to_float(x) - _mm256_cvtss_f32(mean) >= 0;
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

template <typename T, typename View>
inline void pack_channels(const T* x, int64_t count, View view, uint8_t* out) {
  int64_t c = 0;
  for (; c + 32 <= count; c += 32) {
    const uint32_t word = bits_of_32(x + c, view);
    std::memcpy(out + c / 8, &word, 4);
  }
  if (c < count) avx2::pack_channels_generic(x + c, count - c, [view](T value) { return view.one(value); }, out + c / 8);
}

// --- pack

template <typename T>
void pack_rows(const T* x, int64_t rows, int64_t d, uint8_t* out) {
  const auto pack = [&](const T* from, int64_t count, uint8_t* to) { pack_channels(from, count, AsIs{}, to); };
  if (d % 8) {
    avx2::for_each_piece<kReadStreams, T>(rows, d, [&](int, int64_t row, int64_t c, int64_t count) {
      pack(x + row * d + c, count, out + row * bytes_for(d) + c / 8);
    });
    return;
  }
  // Without pad bits the rows are one long row, cut as it suits the memory.
  const int64_t total = rows * d, part = total / (32 * kReadStreams) * 32, rest = part * kReadStreams;
  avx2::for_each_piece<kReadStreams, T>(kReadStreams, part, [&](int, int64_t row, int64_t c, int64_t count) {
    pack(x + row * part + c, count, out + (row * part + c) / 8);
  });
  pack(x + rest, total - rest, out + rest / 8);
}

void pack(const void* x, DType dtype, int64_t rows, int64_t d, uint8_t* out) {
  if (dtype == DType::boolean) pack_rows(static_cast<const bool_t*>(x), rows, d, out);
  avx2::with_float_type(dtype, [&](auto* type) {
    pack_rows(static_cast<const std::remove_pointer_t<decltype(type)>*>(x), rows, d, out);
  });
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

// +-scale in the result's dtype: rounding is symmetric, so only the sign is left to do.
template <typename T, bool kStreaming>
void unpack_signs(const uint8_t* bits, int64_t rows, int64_t d, const T* scale, T* out) {
  avx2::for_each_piece<kStreaming ? 1 : kWriteStreams, T>(rows, d, [&](int, int64_t row, int64_t begin, int64_t count) {
    const uint8_t* in = bits + row * bytes_for(d);
    T* y = out + row * d;
    int64_t c = begin;
    for (; c + 32 <= begin + count; c += 32) {
      const __m256i word = word_at(in + c / 8);
      for (int k = 0; k < 32 / kLanes<T>; ++k) {
        const int64_t i = c + k * kLanes<T>;
        store<kStreaming>(y + i, _mm256_xor_si256(load(scale + i), negative<T>(word, k)));
      }
    }
    for (; c < begin + count; ++c) y[c] = avx2::with_sign(scale[c], avx2::bit_of(in, c));
  });
}

template <typename T, bool kStreaming, bool kBias>
void unpack_affine(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
                   const float* token_scale, T* out) {
  avx2::for_each_piece<kStreaming ? 1 : kWriteStreams, T>(rows, d, [&](int, int64_t row, int64_t begin, int64_t count) {
    const uint8_t* in = bits + row * bytes_for(d);
    T* y = out + row * d;
    const float factor = token_scale ? token_scale[row] : 1.0f;
    int64_t c = begin;
    for (; c + 32 <= begin + count; c += 32) {
      const __m256i word = word_at(in + c / 8);
      for (int k = 0; k < 4; ++k) {
        const int64_t i = c + 8 * k;
        __m256 v = _mm256_xor_ps(_mm256_loadu_ps(scale + i), _mm256_castsi256_ps(negative<float>(word, k)));
        v = _mm256_mul_ps(v, _mm256_set1_ps(factor));
        if constexpr (kBias) v = _mm256_add_ps(v, _mm256_loadu_ps(bias + i));
        store_8<kStreaming>(y + i, v);
      }
    }
    avx2::unpack_row_generic(in, c, begin + count, scale, bias, factor, y);
  });
}

// Streaming stores need aligned addresses in every row.
template <typename T>
bool can_stream(const void* out, int64_t d) {
  return reinterpret_cast<uintptr_t>(out) % 32 == 0 && d % kLanes<T> == 0;
}

void unpack(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
            const float* token_scale, void* out, DType dtype, bool streaming) {
  Scratch scratch;
  if (!scale) {
    float* ones = scratch.get<float>(d);
    for (int64_t c = 0; c < d; ++c) ones[c] = 1.0f;
    scale = ones;
  }
  avx2::with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* y = static_cast<T*>(out);
    const bool stream = streaming && can_stream<T>(out, d);
    if (bias || token_scale) {
      auto run = stream ? (bias ? unpack_affine<T, true, true> : unpack_affine<T, true, false>)
                        : (bias ? unpack_affine<T, false, true> : unpack_affine<T, false, false>);
      run(bits, rows, d, scale, bias, token_scale, y);
    } else {
      auto run = stream ? unpack_signs<T, true> : unpack_signs<T, false>;
      run(bits, rows, d, avx2::row_as<T>(scale, d, scratch), y);
    }
    if (stream) _mm_sfence();
  });
}

// --- binarize

// Sums run in float64, so that no finite input overflows. Conversions would cost more than all the rest (Zen 3 starts
// one for four channels a cycle), so four channels at a time are added in float32 first, and again in float64 if that
// may have gone wrong. It costs a relative error of at most 2^-22 of the squares, half of it in their root.

inline double total(__m256d sums) {
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(sums), _mm256_extractf128_pd(sums, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}

inline __m256d low_half(__m256 v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
inline __m256d high_half(__m256 v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }

template <typename T>
double sum_in_float64(const T* x, int64_t count) {
  __m256d sums = _mm256_setzero_pd();
  for (int64_t c = 0; c < count; c += 8) {
    const __m256 v = load_8(x + c);
    sums = _mm256_add_pd(sums, _mm256_add_pd(low_half(v), high_half(v)));
  }
  return total(sums);
}

template <typename T>
inline double sum(const T* x, int64_t count) {
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
  for (; c < count; ++c) result += avx2::to_float(x[c]);
  return result;
}

template <typename T>
double sum_of_squares_in_float64(const T* x, int64_t count, float mean) {
  const __m256 m = _mm256_set1_ps(mean);
  __m256d sums = _mm256_setzero_pd();
  for (int64_t c = 0; c < count; c += 8) {
    const __m256 centred = _mm256_sub_ps(load_8(x + c), m);
    const __m256d low = low_half(centred), high = high_half(centred);
    sums = _mm256_fmadd_pd(high, high, _mm256_fmadd_pd(low, low, sums));
  }
  return total(sums);
}

template <typename T>
inline double sum_of_squares(const T* x, int64_t count, float mean) {
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
    const double centred = avx2::to_float(x[c]) - mean;
    result += centred * centred;
  }
  return result;
}

inline float magnitude_of(double squares, int64_t d, double eps) {
  return float(std::sqrt(squares / double(d) + eps));
}

template <typename T>
void binarize_rms(const T* x, int64_t rows, int64_t d, double eps, uint8_t* bits, float* magnitudes) {
  double squares[kReadStreams] = {};
  avx2::for_each_piece<kReadStreams, T>(
      rows, d,
      [&](int s, int64_t row, int64_t c, int64_t count) {
        pack_channels(x + row * d + c, count, AsIs{}, bits + row * bytes_for(d) + c / 8);
        squares[s] += sum_of_squares(x + row * d + c, count, 0.0f);
      },
      [&](int s, int64_t row) {
        magnitudes[row] = magnitude_of(squares[s], d, eps);
        squares[s] = 0;
      });
}

// Means from memory, then signs and squares of rows that are in cache.
template <typename T, int kStreams>
void binarize_layer(const T* x, int64_t rows, int64_t d, double eps, uint8_t* bits, float* magnitudes) {
  double sums[kStreams] = {};
  avx2::for_each_piece<kStreams, T>(
      rows, d, [&](int s, int64_t row, int64_t c, int64_t count) { sums[s] += sum(x + row * d + c, count); },
      [&](int s, int64_t row) {
        const float mean = float(sums[s] / double(d));
        sums[s] = 0;
        pack_channels(x + row * d, d, Centred(mean), bits + row * bytes_for(d));
        if (magnitudes) magnitudes[row] = magnitude_of(sum_of_squares(x + row * d, d, mean), d, eps);
      });
}

// Several rows are read twice only where they stay in L2 together.
template <typename T>
bool fit_in_cache(int64_t rows, int64_t d) {
  return rows * d * int64_t(sizeof(T)) <= 128 * 1024;
}

void binarize(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, double eps, uint8_t* bits,
              float* magnitudes) {
  if (!layer && !magnitudes) return pack(x, dtype, rows, d, bits);
  avx2::with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto run = !layer                               ? binarize_rms<T>
               : fit_in_cache<T>(kReadStreams, d) ? binarize_layer<T, kReadStreams>
                                                    : binarize_layer<T, 1>;
    run(static_cast<const T*>(x), rows, d, eps, bits, magnitudes);
  });
}

// --- sign_scale

template <typename T, bool kStreaming, typename View>
inline void sign_scale_channels(const T* x, int64_t count, View view, const T* scale, T* out) {
  int64_t c = 0;
  for (; c + kLanes<T> <= count; c += kLanes<T>) {
    if (kStreaming && c % (2 * kLanes<T>) == 0)
      _mm_prefetch(reinterpret_cast<const char*>(x + c) + kPrefetchBytes, _MM_HINT_NTA);
    store<kStreaming>(out + c, _mm256_xor_si256(load(scale + c), _mm256_andnot_si256(view(x + c), sign_bits<T>())));
  }
  for (; c < count; ++c) out[c] = avx2::with_sign(scale[c], view.one(x[c]));
}

template <typename T, bool kStreaming>
void sign_scale_rows(const T* x, int64_t rows, int64_t d, bool layer, const T* scale, T* out) {
  if (!layer) {
    avx2::for_each_piece<kWriteStreams, T>(rows, d, [&](int, int64_t row, int64_t c, int64_t count) {
      sign_scale_channels<T, kStreaming>(x + row * d + c, count, AsIs{}, scale + c, out + row * d + c);
    });
    return;
  }
  double sums[kWriteStreams] = {};
  avx2::for_each_piece<kWriteStreams, T>(
      rows, d, [&](int s, int64_t row, int64_t c, int64_t count) { sums[s] += sum(x + row * d + c, count); },
      [&](int s, int64_t row) {
        const Centred centred(float(sums[s] / double(d)));
        sums[s] = 0;
        sign_scale_channels<T, kStreaming>(x + row * d, d, centred, scale, out + row * d);
      });
}

void sign_scale(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, const float* scale, void* out,
                bool streaming) {
  Scratch scratch;
  avx2::with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool stream = streaming && can_stream<T>(out, d);
    auto run = stream ? sign_scale_rows<T, true> : sign_scale_rows<T, false>;
    run(static_cast<const T*>(x), rows, d, layer, avx2::row_as<T>(scale, d, scratch), static_cast<T*>(out));
    if (stream) _mm_sfence();
  });
}

}  // namespace

extern const BitsKernels bits_avx2{pack, unpack, binarize, sign_scale, avx2::sign_scale_backward_generic};

}  // namespace btr
