// Kernels of bits.h as walks over rows (streams.inl), on what the including file defines for its instruction set:
//   kReadStreams, kWriteStreams     sequences of addresses in flight
//   kStreamingBytes, fence()        alignment and completion of streaming stores
//   AsIs, Centred                   x as it is, or less the row's mean
//   pack_channels, unpack_signs_channels, unpack_affine_channels, sign_scale_channels, sum, sum_of_squares
// The last ones take the number of channels as int64_t or, for whole pieces, as Channels.

#include "bits/streams.inl"

// What is done with a piece, inlined for every stream; `count` says for how many channels.
#define BTR_PIECE(stream) [&](int stream, int64_t row, int64_t c, auto count) __attribute__((always_inline))

namespace btr::BTR_ISA_NAMESPACE {

// Asks for what a kernel will read soon.
template <typename T, typename Count>
BTR_INLINE void fetch(const T* x, Count count) {
  for (int64_t c = 0; c < count; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(x + c);
}

template <typename T>
void pack_rows(const T* x, int64_t rows, int64_t d, uint8_t* out) {
  if (d % 8) {
    for_each_piece<kReadStreams, T>(rows, d, BTR_PIECE() {
      pack_channels(x + row * d + c, count, AsIs{}, out + row * bytes_for(d) + c / 8);
    });
    return;
  }
  // Without pad bits the rows are one long row, cut as it suits the memory.
  const int64_t total = rows * d, part = total / (64 * kReadStreams) * 64, rest = part * kReadStreams;
  for_each_piece<kReadStreams, T>(kReadStreams, part, BTR_PIECE() {
    pack_channels(x + row * part + c, count, AsIs{}, out + (row * part + c) / 8);
  });
  pack_channels(x + rest, total - rest, AsIs{}, out + rest / 8);
}

inline void pack(const void* x, DType dtype, int64_t rows, int64_t d, uint8_t* out) {
  if (dtype == DType::boolean) pack_rows(static_cast<const bool_t*>(x), rows, d, out);
  with_float_type(dtype, [&](auto* type) {
    pack_rows(static_cast<const std::remove_pointer_t<decltype(type)>*>(x), rows, d, out);
  });
}

// +-scale in the result's dtype: rounding is symmetric, so only the sign is left to do.
template <typename T, bool kStreaming>
void unpack_signs(const uint8_t* bits, int64_t rows, int64_t d, const T* scale, T* out) {
  for_each_piece<kStreaming ? 1 : kWriteStreams, T>(rows, d, BTR_PIECE() {
    unpack_signs_channels<kStreaming>(bits + row * bytes_for(d) + c / 8, count, scale + c, out + row * d + c);
  });
}

template <typename T, bool kStreaming, bool kBias>
void unpack_affine(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
                   const float* token_scale, T* out) {
  for_each_piece<kStreaming ? 1 : kWriteStreams, T>(rows, d, BTR_PIECE() {
    unpack_affine_channels<kStreaming>(bits + row * bytes_for(d) + c / 8, count, scale + c, kBias ? bias + c : nullptr,
                                       token_scale ? token_scale[row] : 1.0f, out + row * d + c);
  });
}

// Streaming stores need aligned addresses in every row.
template <typename T>
bool can_stream(const void* out, int64_t d) {
  return reinterpret_cast<uintptr_t>(out) % kStreamingBytes == 0 && d * int64_t(sizeof(T)) % kStreamingBytes == 0;
}

inline void unpack(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
                   const float* token_scale, void* out, DType dtype, bool streaming) {
  Scratch scratch;
  if (!scale) {
    float* ones = scratch.get<float>(d);
    for (int64_t c = 0; c < d; ++c) ones[c] = 1.0f;
    scale = ones;
  }
  with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* y = static_cast<T*>(out);
    const bool stream = streaming && can_stream<T>(out, d);
    if (bias || token_scale) {
      auto run = stream ? (bias ? unpack_affine<T, true, true> : unpack_affine<T, true, false>)
                        : (bias ? unpack_affine<T, false, true> : unpack_affine<T, false, false>);
      run(bits, rows, d, scale, bias, token_scale, y);
    } else {
      auto run = stream ? unpack_signs<T, true> : unpack_signs<T, false>;
      run(bits, rows, d, row_as<T>(scale, d, scratch), y);
    }
    if (stream) fence();
  });
}

inline float root_of_mean(double squares, int64_t d, double eps) {
  return float(std::sqrt(squares / double(d) + eps));
}

template <typename T>
void binarize_rms(const T* x, int64_t rows, int64_t d, double eps, uint8_t* bits, float* magnitudes) {
  double squares[kReadStreams] = {};
  for_each_piece<kReadStreams, T>(
      rows, d,
      BTR_PIECE(s) {
        pack_channels(x + row * d + c, count, AsIs{}, bits + row * bytes_for(d) + c / 8);
        squares[s] += sum_of_squares(x + row * d + c, count, 0.0f);
      },
      [&](int s, int64_t row) {
        magnitudes[row] = root_of_mean(squares[s], d, eps);
        squares[s] = 0;
      });
}

// Means from memory, then signs and squares of rows that are in cache; meanwhile the next rows are fetched.
template <typename T, int kStreams>
void binarize_layer(const T* x, int64_t rows, int64_t d, double eps, uint8_t* bits, float* magnitudes) {
  double sums[kStreams] = {};
  for_each_piece<kStreams, T>(
      rows, d, BTR_PIECE(s) { sums[s] += sum(x + row * d + c, count); },
      [&](int s, int64_t row) {
        const float mean = float(sums[s] / double(d));
        sums[s] = 0;
        double squares = 0;
        const T* values = x + row * d;
        uint8_t* packed = bits + row * bytes_for(d);
        for_each_piece<1, T>(1, d, [&](int, int64_t, int64_t c, auto count) __attribute__((always_inline)) {
          fetch(values + d + c, count);
          pack_channels(values + c, count, Centred(mean), packed + c / 8);
          if (magnitudes) squares += sum_of_squares(values + c, count, mean);
        });
        if (magnitudes) magnitudes[row] = root_of_mean(squares, d, eps);
      });
}

inline void binarize(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, double eps, uint8_t* bits,
                     float* magnitudes) {
  if (!layer && !magnitudes) return pack(x, dtype, rows, d, bits);
  with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    // Several rows are read twice only where they stay in L2 together.
    const bool fit = kReadStreams * d * int64_t(sizeof(T)) <= 128 * 1024;
    auto run = !layer ? binarize_rms<T> : fit ? binarize_layer<T, kReadStreams> : binarize_layer<T, 1>;
    run(static_cast<const T*>(x), rows, d, eps, bits, magnitudes);
  });
}

template <typename T, bool kStreaming>
void sign_scale_rows(const T* x, int64_t rows, int64_t d, bool layer, const T* scale, T* out) {
  if (!layer) {
    for_each_piece<kWriteStreams, T>(rows, d, BTR_PIECE() {
      sign_scale_channels<kStreaming>(x + row * d + c, count, AsIs{}, scale + c, out + row * d + c);
    });
    return;
  }
  double sums[kWriteStreams] = {};
  for_each_piece<kWriteStreams, T>(
      rows, d, BTR_PIECE(s) { sums[s] += sum(x + row * d + c, count); },
      [&](int s, int64_t row) {
        const Centred centred(float(sums[s] / double(d)));
        sums[s] = 0;
        sign_scale_channels<kStreaming>(x + row * d, d, centred, scale, out + row * d);
      });
}

inline void sign_scale(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, const float* scale, void* out,
                       bool streaming) {
  Scratch scratch;
  with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool stream = streaming && can_stream<T>(out, d);
    auto run = stream ? sign_scale_rows<T, true> : sign_scale_rows<T, false>;
    run(static_cast<const T*>(x), rows, d, layer, row_as<T>(scale, d, scratch), static_cast<T*>(out));
    if (stream) fence();
  });
}

}  // namespace btr::BTR_ISA_NAMESPACE
