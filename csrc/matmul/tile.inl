// A tile of a weight: kGroup channels of one entry's columns, as [channel][column], for building tables from.
#include <cstring>
#include <type_traits>

#include "core/rows.h"
#include "core/vectors.inl"
#include "matmul/matmul.h"

namespace btr::BTR_ISA_NAMESPACE {

constexpr int kGroup = MatmulKernels::kGroup;

// Columns of one table entry, which is a cache line of sums.
template <typename Sum>
constexpr int kColumns = 64 / int(sizeof(Sum));

template <typename Sum>
struct Tile {
  const Sum* rows;  // kGroup of them
  int64_t stride;
};

// out[i * stride_out + j] = rows[j * stride + i] for i, j < 8
BTR_INLINE void transpose_8x8(const float* rows, int64_t stride, float* out, int64_t stride_out) {
#ifdef __AVX2__
  __m256 r[8], t[8];
  for (int j = 0; j < 8; ++j) r[j] = _mm256_loadu_ps(rows + j * stride);
  for (int j = 0; j < 8; j += 2) {
    t[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
    t[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
  }
  for (int j = 0; j < 8; j += 4) {
    r[j] = _mm256_shuffle_ps(t[j], t[j + 2], 0x44);
    r[j + 1] = _mm256_shuffle_ps(t[j], t[j + 2], 0xee);
    r[j + 2] = _mm256_shuffle_ps(t[j + 1], t[j + 3], 0x44);
    r[j + 3] = _mm256_shuffle_ps(t[j + 1], t[j + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * stride_out, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * stride_out, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
#else
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 8; ++i) out[i * stride_out + j] = rows[j * stride + i];
#endif
}

// From a row-major weight: columns first.. are its rows. Channels c..c+kGroup times scale; zeros outside.
template <typename W>
Tile<float> tile_of_rows(const MatmulArgs& args, int64_t first, int64_t c, float* rows, float* tile) {
  constexpr int kTile = kColumns<float>;
  const int64_t left = args.weight_columns() - first, columns = left < kTile ? left : kTile;
  const int64_t channels = args.d - c < kGroup ? args.d - c : kGroup;
  const W* weight = static_cast<const W*>(args.weight) + first * args.d + c;
  if (columns < kTile || channels < kGroup) std::memset(rows, 0, sizeof(float) * kTile * kGroup);
  for (int64_t j = 0; j < columns; ++j) {
    const W* w = weight + j * args.d;
    float* row = rows + j * kGroup;
    // Rows lie apart by d: too far for the hardware to fetch the next group of channels by itself.
    for (size_t line = 0; line < sizeof(W) * kGroup; line += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(w + kGroup) + line);
    if (args.scale)
      for (int64_t i = 0; i < channels; ++i) row[i] = to_float(w[i]) * args.scale[c + i];
    else
      for (int64_t i = 0; i < channels; ++i) row[i] = to_float(w[i]);
  }
  for (int i = 0; i < kGroup; i += 8)
    for (int j = 0; j < kTile; j += 8) transpose_8x8(rows + j * kGroup + i, kGroup, tile + i * kTile + j, kTile);
  return {tile, kTile};
}

// From a channel-major weight: in place where it can be read as it is.
template <typename Sum, typename W>
Tile<Sum> tile_of_channels(const MatmulArgs& args, int64_t first, int64_t c, Sum* tile) {
  constexpr int kTile = kColumns<Sum>;
  const int64_t stride = args.weight_columns(), columns = stride - first < kTile ? stride - first : kTile;
  const int64_t channels = args.d - c < kGroup ? args.d - c : kGroup;
  const W* weight = static_cast<const W*>(args.weight) + c * stride + first;
  const bool whole = columns == kTile && channels == kGroup;
  // The next group of channels, of these columns or the next: its rows lie too far apart for the hardware to fetch them
  // ahead.
  const W* next = c + kGroup < args.d ? weight + kGroup * stride : static_cast<const W*>(args.weight) + first + kTile;
  const int64_t channels_left = c + kGroup < args.d ? args.d - c - kGroup : args.d;
  for (int64_t i = 0; i < (channels_left < kGroup ? channels_left : kGroup); ++i) __builtin_prefetch(next + i * stride);
  if constexpr (std::is_same_v<Sum, W>)
    if (whole) return {weight, stride};
  if (!whole) std::memset(tile, 0, sizeof(Sum) * kTile * kGroup);
  for (int64_t i = 0; i < channels; ++i) {
    const W* w = weight + i * stride;
    Sum* row = tile + i * kTile;
    const auto copy = [&](int64_t count) {
      for (int64_t j = 0; j < count; ++j) {
        if constexpr (std::is_same_v<Sum, float>)
          row[j] = to_float(w[j]);
        else
          row[j] = w[j];
      }
    };
    if (columns == kTile)
      copy(kTile);
    else
      copy(columns);
  }
  return {tile, kTile};
}

}  // namespace btr::BTR_ISA_NAMESPACE
