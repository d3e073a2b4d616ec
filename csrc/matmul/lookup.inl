// The lookup kernel of matmul.h.
#include <cstring>

#include "core/scratch.h"
#include "matmul/gelu.inl"
#include "matmul/tile.inl"

namespace btr::BTR_ISA_NAMESPACE {

// How the 64 channels of a word are split among tables: as many of `Bits` channels as fit, and one of the rest.
template <int Bits>
struct Split {
  static constexpr int kRest = kGroup % Bits, kTables = kGroup / Bits + (kRest != 0);
  static constexpr int channels(int table) { return table < kGroup / Bits ? Bits : kRest; }
  // In entries.
  static constexpr int begin(int table) {
    return table < kGroup / Bits ? table << Bits : (kGroup / Bits) << Bits;
  }
  static constexpr int kEntries = begin(kGroup / Bits) + (kRest ? 1 << kRest : 0);
};

// sums[e * Stride] = the signed sum of `Channels` vectors, each + where e has its bit.
template <int Channels, int Stride, typename V>
BTR_INLINE void signed_sums(const V* w, V* sums) {
  sums[0] = -w[0];
  sums[Stride] = w[0];
#pragma GCC unroll 4
  for (int k = 1; k < Channels; ++k) {
#pragma GCC unroll 8
    for (int e = 0; e < 1 << k; ++e) {
      sums[(e | 1 << k) * Stride] = sums[e * Stride] + w[k];
      sums[e * Stride] = sums[e * Stride] - w[k];
    }
  }
}

// table[entry][column]: the sum of `Channels` channels, each + where the entry has its bit. Limit: the stores, which
// must complete a line at a time, since passes over the tokens leave much of the tables in L2 only.
template <int Channels, typename Sum>
BTR_INLINE void build_table(const Sum* rows, int64_t stride, Sum* table) {
  constexpr int kVectors = kColumns<Sum> / kLanes<Sum>;
  constexpr int kLow = Channels < 3 ? 1 : 2, kHigh = Channels - kLow;
  // The low halves of all entries fit in registers, the high ones are read back.
  Vector<Sum> low[(1 << kLow) * kVectors], high[(1 << kHigh) * kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    Vector<Sum> w[Channels];
#pragma GCC unroll 8
    for (int i = 0; i < Channels; ++i) w[i] = load(rows + i * stride + v * kLanes<Sum>);
    signed_sums<kLow, kVectors>(w, low + v);
    signed_sums<kHigh, kVectors>(w + kLow, high + v);
  }
  for (int h = 0; h < 1 << kHigh; ++h)
#pragma GCC unroll 4
    for (int l = 0; l < 1 << kLow; ++l)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        store(table + ((h << kLow) + l) * kColumns<Sum> + v * kLanes<Sum>, low[l * kVectors + v] + high[h * kVectors + v]);
}

template <int Bits, typename Sum>
void build_tables(const Tile<Sum>& tile, Sum* tables) {
  using S = Split<Bits>;
  for (int g = 0; g < kGroup / Bits; ++g)
    build_table<Bits>(tile.rows + g * Bits * tile.stride, tile.stride, tables + S::begin(g) * kColumns<Sum>);
  if constexpr (S::kRest != 0)
    build_table<S::kRest>(tile.rows + (kGroup - S::kRest) * tile.stride, tile.stride,
                          tables + S::begin(kGroup / Bits) * kColumns<Sum>);
}

// Byte offset, in its table, of the entry that the word names.
template <int Bits>
BTR_INLINE uint64_t entry_offset(uint64_t word, int table) {
  constexpr int kEntry = 6;  // log2 of an entry's bytes
  const int shift = Bits * table - kEntry;
  const uint64_t mask = ((uint64_t(1) << Split<Bits>::channels(table)) - 1) << kEntry;
  return (shift < 0 ? word << -shift : word >> shift) & mask;
}

// Where sums of a pass over a block's tokens come from and go to, one entry a token. Sums of int16 hold
// only so many channels: then they are added to float32 totals, times the factors.
template <typename Sum>
struct Sums {
  Sum* running;
  float* totals;
  const float* factors;  // of this tile's columns
};

// One pass for `Tokens` tokens at once: their chains of adds overlap. `Resume`: go on from the running sums.
template <int Bits, int Tokens, bool Resume, bool Flush, typename Sum>
BTR_INLINE void add_entries(const uint64_t* words, const Sum* tables, const Sums<Sum>& sums, int64_t token) {
  constexpr int kVectors = kColumns<Sum> / kLanes<Sum>;
  Vector<Sum> a[Tokens][kVectors];
  uint64_t word[Tokens];
#pragma GCC unroll 4
  for (int t = 0; t < Tokens; ++t) {
    word[t] = words[token + t];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      a[t][v] = Resume ? load(sums.running + (token + t) * kColumns<Sum> + v * kLanes<Sum>) : Vector<Sum>{};
  }
#pragma GCC unroll 16
  for (int g = 0; g < Split<Bits>::kTables; ++g) {
    const char* table = reinterpret_cast<const char*>(tables + Split<Bits>::begin(g) * kColumns<Sum>);
#pragma GCC unroll 4
    for (int t = 0; t < Tokens; ++t) {
      const Sum* entry = reinterpret_cast<const Sum*>(table + entry_offset<Bits>(word[t], g));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) a[t][v] += load(entry + v * kLanes<Sum>);
    }
    // GCC would compute the addresses of all groups first, and spill them.
    asm volatile("" ::: "memory");
  }
  if constexpr (Flush) {
    constexpr int kHalf = kLanes<float>;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Floats low = load(sums.factors + 2 * v * kHalf), high = load(sums.factors + (2 * v + 1) * kHalf);
#pragma GCC unroll 4
      for (int t = 0; t < Tokens; ++t) {
        float* total = sums.totals + (token + t) * kColumns<Sum> + 2 * v * kHalf;
        store(total, load(total) + low * widen<0>(a[t][v]));
        store(total + kHalf, load(total + kHalf) + high * widen<1>(a[t][v]));
      }
    }
  } else {
#pragma GCC unroll 4
    for (int t = 0; t < Tokens; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        store(sums.running + (token + t) * kColumns<Sum> + v * kLanes<Sum>, a[t][v]);
  }
}

template <int Bits, bool Resume, bool Flush, typename Sum>
__attribute__((noinline)) void add_tokens(const uint64_t* words, int64_t tokens, const Sum* tables,
                                          const Sums<Sum>& sums) {
  // Eight chains of adds and their addresses fill the registers of AVX2; plain x86-64 has no room for as many.
  constexpr int kTogether = kVectorBytes >= 32 ? 4 : 2;
  int64_t t = 0;
  for (; t + kTogether <= tokens; t += kTogether) add_entries<Bits, kTogether, Resume, Flush>(words, tables, sums, t);
  for (; t < tokens; ++t) add_entries<Bits, 1, Resume, Flush>(words, tables, sums, t);
}

// A float32 line of the result past the caches, as it will be evicted before anybody reads it.
BTR_INLINE void stream(float* p, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, __m512(v));
#elif defined(__AVX2__)
  _mm256_stream_ps(p, __m256(v));
#else
  store(p, v);
#endif
}

constexpr int kStripe = MatmulKernels::kStripe;

// Totals of tokens times their scale, plus the bias, to a stripe of columns of the result: lines of one tile, a row
// apart, would reach memory at a fifth of its rate. Totals are kept in tiles, each with all tokens of the block; those of
// the linear part, if there is one, follow those of all tiles.
template <int Tile>
class Writer {
 public:
  Writer(const MatmulArgs& args, bool streaming, int64_t first, int64_t last, const float* totals, int64_t block)
      : args_(args), first_(first), columns_(last - first < kStripe ? last - first : kStripe), totals_(totals),
        tile_stride_(block * Tile), linear_(block * kStripe) {
    for (int64_t j = 0; j < kStripe; ++j) {
      bias_[0][j] = args.bias && j < columns_ ? args.bias[first + j] : 0.0f;
      bias_[1][j] = args.bias && args.gated && j < columns_ ? args.bias[args.n + first + j] : 0.0f;
    }
    streaming_ = streaming && columns_ == kStripe && args.out_type == DType::f32 && args.n % 16 == 0 &&
                 reinterpret_cast<uintptr_t>(static_cast<float*>(args.out) + first) % 64 == 0;
  }

  // All tokens of the block, the first of which is `token`.
  void write(int64_t token, int64_t tokens) const {
    with_float_type(args_.out_type, [&](auto* type) {
      using Out = std::remove_pointer_t<decltype(type)>;
      if (args_.gated)
        write_rows<true, Out>(token, tokens);
      else
        write_rows<false, Out>(token, tokens);
    });
  }

 private:
  template <bool Gated, typename Out>
  void write_rows(int64_t token, int64_t tokens) const {
    Out* out = static_cast<Out*>(args_.out) + token * args_.n + first_;
    for (int64_t t = 0; t < tokens; ++t, out += args_.n) {
      const float token_scale = args_.token_scale ? args_.token_scale[token + t] : 1.0f;
      const float* total = totals_ + t * Tile;
      for (int64_t j = 0; j < columns_; j += Tile, total += tile_stride_)
        write_tile<Gated>(total, token_scale, j, out + j, columns_ - j);
    }
  }

  template <bool Gated>
  BTR_INLINE Floats value(const float* total, float token_scale, int64_t column) const {
    const Floats v = load(total) * token_scale + load(bias_[0] + column);
    if constexpr (!Gated) return v;
    return gelu(v) * (load(total + linear_) * token_scale + load(bias_[1] + column));
  }

  template <bool Gated, typename Out>
  void write_tile(const float* total, float token_scale, int64_t column, Out* out, int64_t columns) const {
    if constexpr (std::is_same_v<Out, float>) {
      if (streaming_) {
        for (int j = 0; j < Tile; j += kLanes<float>) stream(out + j, value<Gated>(total + j, token_scale, column + j));
        return;
      }
    }
    if (columns >= Tile) {
      for (int j = 0; j < Tile; j += kLanes<float>) store_as(out + j, value<Gated>(total + j, token_scale, column + j));
      return;
    }
    float values[Tile];
    for (int j = 0; j < Tile; j += kLanes<float>) store(values + j, value<Gated>(total + j, token_scale, column + j));
    for (int64_t j = 0; j < columns; ++j) out[j] = from_float<Out>(values[j]);
  }

  const MatmulArgs& args_;
  int64_t first_, columns_;
  const float* totals_;
  int64_t tile_stride_, linear_;
  bool streaming_;
  float bias_[2][kStripe];
};

// Columns [first, last) of a block of tokens. `tile_at(column, channel)` gives the tile there.
template <int Bits, typename Sum, typename TileAt>
void lookup_block(const MatmulArgs& args, bool streaming, int64_t token, int64_t tokens, int64_t first, int64_t last,
                  Scratch& scratch, const TileAt& tile_at) {
  constexpr int kTile = kColumns<Sum>;
  constexpr bool kInteger = std::is_same_v<Sum, int16_t>;
  const int64_t w = bytes_for(args.d), groups = groups_for(args.d), columns = args.weight_columns();
  uint64_t* words = scratch.get<uint64_t>(groups * tokens);
  Sum* tables = scratch.get<Sum>(Split<Bits>::kEntries * kTile);
  float* all_totals = scratch.get<float>(tokens * kStripe * (args.gated ? 2 : 1));
  // Sums of int16 hold one group of channels of an int16 weight, several of an int8 one.
  const int64_t flush_every = !kInteger                        ? MatmulKernels::kFloatChannels / kGroup
                              : args.weight_type == DType::i8 ? MatmulKernels::kByteChannels / kGroup
                                                              : 1;
  const bool in_parts = groups > flush_every;
  Sum* running = scratch.get<Sum>(flush_every > 1 && (kInteger || in_parts) ? tokens * kTile : 1);
  float factors[kTile] = {};

  // Group-major bits: read in order, eight bytes a token, for every tile.
  for (int64_t t = 0; t < tokens; ++t) {
    const uint8_t* row = args.bits + (token + t) * w;
    for (int64_t g = 0; g < groups; ++g) {
      uint64_t word = 0;
      std::memcpy(&word, row + 8 * g, size_t(w - 8 * g < 8 ? w - 8 * g : 8));
      words[g * tokens + t] = word;
    }
  }
  const auto add_tile = [&](int64_t column, float* totals) {
    Sums<Sum> sums{running, totals, factors};
    if (kInteger || in_parts) std::memset(totals, 0, sizeof(float) * size_t(tokens * kTile));
    if constexpr (!kInteger)
      if (!in_parts) sums.running = totals;
    for (int64_t g = 0; g < groups; ++g) {
      build_tables<Bits>(tile_at(column, g * kGroup), tables);
      const uint64_t* word = words + g * tokens;
      const bool resume = g % flush_every != 0;
      if constexpr (kInteger) {
        if ((g + 1) % flush_every == 0 || g + 1 == groups) {
          const int64_t count = columns - column < kTile ? columns - column : kTile;
          const int64_t block = args.factor_blocks == 1 ? 0 : g / flush_every;
          std::memcpy(factors, args.factors + block * columns + column, sizeof(float) * size_t(count));
          resume ? add_tokens<Bits, true, true>(word, tokens, tables, sums)
                 : add_tokens<Bits, false, true>(word, tokens, tables, sums);
          continue;
        }
      }
      resume ? add_tokens<Bits, true, false>(word, tokens, tables, sums)
             : add_tokens<Bits, false, false>(word, tokens, tables, sums);
      if constexpr (!kInteger)
        if (in_parts && ((g + 1) % flush_every == 0 || g + 1 == groups))
          for (int64_t i = 0; i < tokens * kTile; ++i) totals[i] += running[i];
    }
  };
  for (int64_t stripe = first; stripe < last; stripe += kStripe) {
    const int64_t end = last - stripe < kStripe ? last : stripe + kStripe;
    for (int64_t column = stripe; column < end; column += kTile) {
      add_tile(column, all_totals + (column - stripe) * tokens);
      if (args.gated) add_tile(args.n + column, all_totals + (kStripe + column - stripe) * tokens);
    }
    Writer<kTile>(args, streaming, stripe, last, all_totals, tokens).write(token, tokens);
  }
#ifdef __AVX2__
  if (streaming) _mm_sfence();  // other threads see what was streamed
#endif
}

template <typename Sum, typename TileAt>
void lookup_block(const MatmulArgs& args, const MatmulPlan& plan, int64_t token, int64_t tokens, int64_t first,
                  int64_t last, Scratch& scratch, const TileAt& tile_at) {
  if (plan.table_bits == 5)
    lookup_block<5, Sum>(args, plan.streaming, token, tokens, first, last, scratch, tile_at);
  else
    lookup_block<4, Sum>(args, plan.streaming, token, tokens, first, last, scratch, tile_at);
}

}  // namespace btr::BTR_ISA_NAMESPACE
