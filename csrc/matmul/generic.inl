// Kernels of matmul.h, written with the compiler's vector extension, so that every instruction set compiles the same
// code to its own vectors (two or four of them where eight floats do not fit one).

#include <cstring>
#include <type_traits>

#include "core/rows.h"
#include "core/scratch.h"
#include "matmul/matmul.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"

namespace btr::BTR_ISA_NAMESPACE {

constexpr int kTile = MatmulKernels::kTile, kGroup = MatmulKernels::kGroup, kNibbles = kGroup / 4;

typedef float Lanes __attribute__((vector_size(32)));
typedef float UnalignedLanes __attribute__((vector_size(32), aligned(4), may_alias));

#define BTR_INLINE inline __attribute__((always_inline))

// Always inlined, so that no vector crosses a call, where its passing would depend on the instruction set.
BTR_INLINE Lanes load(const float* p) { return *reinterpret_cast<const UnalignedLanes*>(p); }
BTR_INLINE void store(float* p, Lanes v) { *reinterpret_cast<UnalignedLanes*>(p) = v; }

// out[i * kTile + j] = rows[j * stride + i] for i, j < 8
inline void transpose_8x8(const float* rows, int64_t stride, float* out) {
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
    _mm256_storeu_ps(out + i * kTile, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * kTile, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
#else
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 8; ++i) out[i * kTile + j] = rows[j * stride + i];
#endif
}

// Rows first..first+kTile of the weight, channels c..c+kGroup, times scale, as [channel][column]; zeros outside.
template <typename W>
void load_tile(const MatmulArgs& args, const W* weight, int64_t first, int64_t c, float* rows, float* tile) {
  const int64_t columns = args.n - first < kTile ? args.n - first : kTile;
  const int64_t channels = args.d - c < kGroup ? args.d - c : kGroup;
  if (columns < kTile || channels < kGroup) std::memset(rows, 0, sizeof(float) * kTile * kGroup);
  for (int64_t j = 0; j < columns; ++j) {
    const W* w = weight + (first + j) * args.d + c;
    float* row = rows + j * kGroup;
    if (args.scale)
      for (int64_t i = 0; i < channels; ++i) row[i] = to_float(w[i]) * args.scale[c + i];
    else
      for (int64_t i = 0; i < channels; ++i) row[i] = to_float(w[i]);
  }
  for (int i = 0; i < kGroup; i += 8)
    for (int j = 0; j < kTile; j += 8) transpose_8x8(rows + j * kGroup + i, kGroup, tile + i * kTile + j);
}

// tables[nibble][entry][column]: the sum of the four channels of the nibble, each + where the entry has its bit.
inline void build_tables(const float* tile, float* tables) {
  for (int g = 0; g < kNibbles; ++g) {
    for (int half = 0; half < kTile; half += 8) {
      const float* w = tile + 4 * g * kTile + half;
      float* table = tables + g * 16 * kTile + half;
      const Lanes w0 = load(w), w1 = load(w + kTile), w2 = load(w + 2 * kTile), w3 = load(w + 3 * kTile);
      const Lanes low[4] = {-w0 - w1, w0 - w1, w1 - w0, w0 + w1};
      const Lanes high[4] = {-w2 - w3, w2 - w3, w3 - w2, w2 + w3};
      for (int h = 0; h < 4; ++h)
        for (int l = 0; l < 4; ++l) store(table + (4 * h + l) * kTile, low[l] + high[h]);
    }
  }
}

// Byte offset of the entry that nibble g of the bits names in its table: the nibble times 64.
BTR_INLINE uint64_t entry_offset(uint64_t bits, int g) {
  constexpr int kEntry = 6;  // log2 of kTile floats
  const int shift = 4 * g - kEntry;
  return (shift < 0 ? bits << -shift : bits >> shift) & (uint64_t(15) << kEntry);
}

// sums[token][column] += the tables' entries for `Tokens` tokens at once: their chains of adds overlap.
template <int Tokens>
BTR_INLINE void add_entries(const uint64_t* bits, const float* tables, float* sums) {
  Lanes a[Tokens], b[Tokens];
  uint64_t word[Tokens];
  for (int t = 0; t < Tokens; ++t) {
    word[t] = bits[t];
    a[t] = load(sums + t * kTile);
    b[t] = load(sums + t * kTile + 8);
  }
#pragma GCC unroll 16
  for (int g = 0; g < kNibbles; ++g) {
    const char* table = reinterpret_cast<const char*>(tables + g * 16 * kTile);
#pragma GCC unroll 4
    for (int t = 0; t < Tokens; ++t) {
      const float* entry = reinterpret_cast<const float*>(table + entry_offset(word[t], g));
      a[t] += load(entry);
      b[t] += load(entry + 8);
    }
    // GCC would compute the addresses of all groups first, and spill them.
    asm volatile("" ::: "memory");
  }
  for (int t = 0; t < Tokens; ++t) {
    store(sums + t * kTile, a[t]);
    store(sums + t * kTile + 8, b[t]);
  }
}

template <typename Out>
void write_tile(const MatmulArgs& args, const float* sums, int64_t token, int64_t tokens, int64_t first) {
  const int64_t columns = args.n - first < kTile ? args.n - first : kTile;
  float factor[kTile], bias[kTile];
  for (int64_t j = 0; j < kTile; ++j) {
    factor[j] = args.row_scale && j < columns ? args.row_scale[first + j] : 1.0f;
    bias[j] = args.bias && j < columns ? args.bias[first + j] : 0.0f;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float token_scale = args.token_scale ? args.token_scale[token + t] : 1.0f;
    Out* out = static_cast<Out*>(args.out) + (token + t) * args.n + first;
    float y[kTile];
    for (int64_t j = 0; j < kTile; ++j) y[j] = sums[t * kTile + j] * factor[j] * token_scale + bias[j];
    if (columns == kTile) {
      for (int64_t j = 0; j < kTile; ++j) out[j] = from_float<Out>(y[j]);
    } else {
      for (int64_t j = 0; j < columns; ++j) out[j] = from_float<Out>(y[j]);
    }
  }
}

// Columns [first, last) of a block of tokens.
template <typename W>
void lookup_block(const MatmulArgs& args, int64_t token, int64_t tokens, int64_t first, int64_t last,
                  Scratch& scratch) {
  const int64_t w = bytes_for(args.d), groups = (args.d + kGroup - 1) / kGroup;
  uint64_t* bits = scratch.get<uint64_t>(groups * tokens);
  float* sums = scratch.get<float>(tokens * kTile);
  float* tables = scratch.get<float>(kNibbles * 16 * kTile);
  float* rows = scratch.get<float>(kGroup * kTile);
  float* tile = scratch.get<float>(kGroup * kTile);

  // Group-major bits: read in order, eight bytes a token, for every tile.
  for (int64_t t = 0; t < tokens; ++t) {
    const uint8_t* row = args.bits + (token + t) * w;
    for (int64_t g = 0; g < groups; ++g) {
      uint64_t word = 0;
      std::memcpy(&word, row + 8 * g, size_t(w - 8 * g < 8 ? w - 8 * g : 8));
      bits[g * tokens + t] = word;
    }
  }
  for (int64_t column = first; column < last; column += kTile) {
    std::memset(sums, 0, sizeof(float) * size_t(tokens * kTile));
    for (int64_t g = 0; g < groups; ++g) {
      load_tile(args, static_cast<const W*>(args.weight), column, g * kGroup, rows, tile);
      build_tables(tile, tables);
      const uint64_t* word = bits + g * tokens;
      int64_t t = 0;
      for (; t + 2 <= tokens; t += 2) add_entries<2>(word + t, tables, sums + t * kTile);
      for (; t < tokens; ++t) add_entries<1>(word + t, tables, sums + t * kTile);
    }
    with_float_type(args.out_type, [&](auto* type) {
      write_tile<std::remove_pointer_t<decltype(type)>>(args, sums, token, tokens, column);
    });
  }
}

// sums[row][token] of `Rows` weight rows times `Tokens` expanded tokens. More of both in registers means fewer loads for
// each multiply-add: 7 for 12 here at 3 x 4.
template <int Rows, int Tokens>
BTR_INLINE void dot_rows(const float* tokens, int64_t stride, const float* const* rows, int64_t d, float* sums) {
  // An FMA takes four cycles and two start in each: with few tokens, several sums a product keep them busy.
  constexpr int kChains = Rows * Tokens < 8 ? 8 / (Rows * Tokens) : 1;
  Lanes lanes[Rows][Tokens][kChains] = {};
  int64_t c = 0;
  for (; c + 8 * kChains <= d; c += 8 * kChains) {
#pragma GCC unroll 8
    for (int k = 0; k < kChains; ++k) {
      Lanes w[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        // Into the rows after these: a row is too short for the hardware to fetch ahead in time.
        if (k % 2 == 0) __builtin_prefetch(rows[r] + Rows * d + c + 8 * k);
        w[r] = load(rows[r] + c + 8 * k);
      }
#pragma GCC unroll 4
      for (int t = 0; t < Tokens; ++t) {
        const Lanes x = load(tokens + t * stride + c + 8 * k);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) lanes[r][t][k] += x * w[r];
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int t = 0; t < Tokens; ++t) {
      Lanes v = lanes[r][t][0];
      for (int k = 1; k < kChains; ++k) v += lanes[r][t][k];
      float sum = ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
      for (int64_t i = c; i < d; ++i) sum += tokens[t * stride + i] * rows[r][i];
      sums[r * Tokens + t] = sum;
    }
  }
}

inline void expand_token(const MatmulArgs& args, const uint8_t* bits, float* expanded) {
  for (int64_t c = 0; c < args.d; c += 8) {
    const unsigned byte = bits[c / 8];
    const int64_t count = args.d - c < 8 ? args.d - c : 8;
    for (int64_t i = 0; i < count; ++i) {
      const float s = args.scale ? args.scale[c + i] : 1.0f;
      expanded[c + i] = byte >> i & 1 ? s : -s;
    }
  }
}

// `Rows` rows from `n` on, for all tokens of the block.
template <int Rows, typename W>
void dot_columns(const MatmulArgs& args, const float* expanded, int64_t stride, int64_t token, int64_t tokens,
                 int64_t n, float* converted) {
  const float* rows[Rows];
  for (int r = 0; r < Rows; ++r)
    rows[r] = load_row(static_cast<const W*>(args.weight) + (n + r) * args.d, args.d, converted + r * stride);
  const auto finish = [&](int64_t first, int64_t count, const float* sums) {
    with_float_type(args.out_type, [&](auto* type) {
      using Out = std::remove_pointer_t<decltype(type)>;
      for (int r = 0; r < Rows; ++r) {
        const float factor = args.row_scale ? args.row_scale[n + r] : 1.0f, bias = args.bias ? args.bias[n + r] : 0.0f;
        for (int64_t t = 0; t < count; ++t) {
          const int64_t m = token + first + t;
          const float token_scale = args.token_scale ? args.token_scale[m] : 1.0f;
          static_cast<Out*>(args.out)[m * args.n + n + r] =
              from_float<Out>(sums[r * count + t] * factor * token_scale + bias);
        }
      }
    });
  };
  float sums[Rows * 4];
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) {
    dot_rows<Rows, 4>(expanded + t * stride, stride, rows, args.d, sums);
    finish(t, 4, sums);
  }
  if (t + 2 <= tokens) {
    dot_rows<Rows, 2>(expanded + t * stride, stride, rows, args.d, sums);
    finish(t, 2, sums);
    t += 2;
  }
  if (t < tokens) {
    dot_rows<Rows, 1>(expanded + t * stride, stride, rows, args.d, sums);
    finish(t, 1, sums);
  }
}

template <typename W>
void dot_block(const MatmulArgs& args, int64_t token, int64_t tokens, int64_t first, int64_t last, Scratch& scratch) {
  // Three rows at once save loads. A single token saves none, and reads a weight from memory faster in one stream.
  constexpr int kRows = 3;
  const int64_t w = bytes_for(args.d), stride = (args.d + 15) / 16 * 16;
  float* expanded = scratch.get<float>(tokens * stride);
  float* converted = scratch.get<float>(kRows * stride);
  for (int64_t t = 0; t < tokens; ++t) expand_token(args, args.bits + (token + t) * w, expanded + t * stride);
  int64_t n = first;
  if (tokens > 1)
    for (; n + kRows <= last; n += kRows) dot_columns<kRows, W>(args, expanded, stride, token, tokens, n, converted);
  for (; n < last; ++n) dot_columns<1, W>(args, expanded, stride, token, tokens, n, converted);
}

inline void run_matmul(const MatmulArgs& args, const MatmulPlan& plan, int64_t begin, int64_t end) {
  const int64_t tiles = (args.n + kTile - 1) / kTile;
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t token = piece / plan.column_parts * plan.block, part = piece % plan.column_parts;
    const int64_t tokens = args.m - token < plan.block ? args.m - token : plan.block;
    const int64_t first = tiles * part / plan.column_parts * kTile;
    const int64_t end_column = tiles * (part + 1) / plan.column_parts * kTile;
    const int64_t last = end_column < args.n ? end_column : args.n;
    Scratch scratch;
    auto block = [&](auto* type) {
      using W = std::remove_pointer_t<decltype(type)>;
      if (plan.lookup)
        lookup_block<W>(args, token, tokens, first, last, scratch);
      else
        dot_block<W>(args, token, tokens, first, last, scratch);
    };
    with_float_type(args.weight_type, block);
    if (args.weight_type == DType::i8) block(static_cast<int8_t*>(nullptr));
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
