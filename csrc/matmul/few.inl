// The kernels of matmul.h for few tokens.
#include <algorithm>
#include <type_traits>

#include "core/rows.h"
#include "core/scratch.h"
#include "matmul/gelu.inl"
#include "matmul/matmul.h"
#include "matmul/vectors.inl"

namespace btr::BTR_ISA_NAMESPACE {

inline float sum_of(Floats v) {
  float sums[kLanes<float>];
  store(sums, v);
  for (int step = kLanes<float> / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) sums[i] += sums[i + step];
  return sums[0];
}

// +-scale of every channel of a token.
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

// --- Row-major weights: dot products.

// sums[row][token] of `Rows` weight rows, `row` apart, times `Tokens` expanded tokens, over d channels. More of both in registers means fewer loads for
// each multiply-add: 7 for 12 here at 3 x 4.
template <int Rows, int Tokens>
BTR_INLINE void dot_rows(const float* tokens, int64_t stride, const float* const* rows, int64_t row, int64_t d,
                         float* sums) {
  // An FMA takes four cycles and two start in each: with few tokens, several sums a product keep them busy.
  constexpr int kChains = Rows * Tokens < 8 ? 8 / (Rows * Tokens) : 1, kStep = kLanes<float> * kChains;
  Floats lanes[Rows][Tokens][kChains] = {};
  int64_t c = 0;
  for (; c + kStep <= d; c += kStep) {
#pragma GCC unroll 8
    for (int k = 0; k < kChains; ++k) {
      Floats w[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        // Into the rows after these: a row is too short for the hardware to fetch ahead in time.
        if (k % (64 / kVectorBytes) == 0) __builtin_prefetch(rows[r] + Rows * row + c + kLanes<float> * k);
        w[r] = load(rows[r] + c + kLanes<float> * k);
      }
#pragma GCC unroll 4
      for (int t = 0; t < Tokens; ++t) {
        const Floats x = load(tokens + t * stride + c + kLanes<float> * k);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) lanes[r][t][k] += x * w[r];
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int t = 0; t < Tokens; ++t) {
      Floats v = lanes[r][t][0];
      for (int k = 1; k < kChains; ++k) v += lanes[r][t][k];
      float sum = sum_of(v);
      for (int64_t i = c; i < d; ++i) sum += tokens[t * stride + i] * rows[r][i];
      sums[r * Tokens + t] = sum;
    }
  }
}

// `Rows` rows from `n` on, for all tokens of the block.
template <int Rows, typename W>
void dot_columns(const MatmulArgs& args, const float* expanded, int64_t stride, int64_t token, int64_t tokens,
                 int64_t n, float* converted) {
  // Of the gate, or all there is; and of the linear part.
  const float* rows[2][Rows];
  const auto row = [&](int part, int r) {
    return load_row(static_cast<const W*>(args.weight) + (part * args.n + n + r) * args.d, args.d,
                    converted + (part * Rows + r) * stride);
  };
  for (int r = 0; r < Rows; ++r) {
    rows[0][r] = row(0, r);
    if (args.gated) rows[1][r] = row(1, r);
  }
  const auto dot = [&](auto count, int64_t first) {
    constexpr int kTokens = decltype(count)::value;
    float values[2][Rows * kTokens];
    for (int part = 0; part < (args.gated ? 2 : 1); ++part) {
      std::fill(values[part], values[part] + Rows * kTokens, 0.0f);
      for (int64_t begin = 0; begin < args.d; begin += MatmulKernels::kFloatChannels) {
        const float* from[Rows];
        for (int r = 0; r < Rows; ++r) from[r] = rows[part][r] + begin;
        float sums[Rows * kTokens];
        dot_rows<Rows, kTokens>(expanded + first * stride + begin, stride, from, args.d,
                                std::min(args.d - begin, MatmulKernels::kFloatChannels), sums);
        for (int i = 0; i < Rows * kTokens; ++i) values[part][i] += sums[i];
      }
      for (int r = 0; r < Rows; ++r) {
        const float bias = args.bias ? args.bias[part * args.n + n + r] : 0.0f;
        for (int t = 0; t < kTokens; ++t) {
          const float token_scale = args.token_scale ? args.token_scale[token + first + t] : 1.0f;
          values[part][r * kTokens + t] = values[part][r * kTokens + t] * token_scale + bias;
        }
      }
    }
    if (args.gated) apply_gate(values[0], values[1], Rows * kTokens);
    with_float_type(args.out_type, [&](auto* type) {
      using Out = std::remove_pointer_t<decltype(type)>;
      for (int r = 0; r < Rows; ++r)
        for (int t = 0; t < kTokens; ++t)
          static_cast<Out*>(args.out)[(token + first + t) * args.n + n + r] =
              from_float<Out>(values[0][r * kTokens + t]);
    });
  };
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) dot(std::integral_constant<int, 4>(), t);
  if (t + 2 <= tokens) {
    dot(std::integral_constant<int, 2>(), t);
    t += 2;
  }
  if (t < tokens) dot(std::integral_constant<int, 1>(), t);
}

template <typename W>
void dot_block(const MatmulArgs& args, int64_t token, int64_t tokens, int64_t first, int64_t last, Scratch& scratch) {
  // Three rows at once save loads. A single token saves none, and reads a weight from memory faster in one stream.
  constexpr int kRows = 3;
  const int64_t w = bytes_for(args.d), stride = (args.d + 15) / 16 * 16;
  float* expanded = scratch.get<float>(tokens * stride);
  float* converted = scratch.get<float>(2 * kRows * stride);
  for (int64_t t = 0; t < tokens; ++t) expand_token(args, args.bits + (token + t) * w, expanded + t * stride);
  int64_t n = first;
  if (tokens > 1)
    for (; n + kRows <= last; n += kRows) dot_columns<kRows, W>(args, expanded, stride, token, tokens, n, converted);
  for (; n < last; ++n) dot_columns<1, W>(args, expanded, stride, token, tokens, n, converted);
}

// --- Channel-major weights: sums of channels, without a sum across lanes. Sums of integers are exact, in int16 as long
// as MatmulArgs allows.

template <typename W>
using SumOf = std::conditional_t<std::is_integral_v<W>, int16_t, float>;

// sums[token][column] += the signed sum of `Streams` channels, for `Tokens` tokens and columns [0, columns). Several
// channels cost one load and one store of the sums, and lie far apart, since the hardware fetches more sequences of
// addresses faster than one.
template <int Tokens, int Streams, typename W>
BTR_INLINE void add_channels(const W* const* weight, int64_t columns, const float* signs, int64_t tokens_stride,
                             int64_t channel_stride, SumOf<W>* sums, int64_t sums_stride) {
  using Sum = SumOf<W>;
  Sum one[Tokens][Streams];
  Vector<Sum> x[Tokens][Streams];
#pragma GCC unroll 2
  for (int t = 0; t < Tokens; ++t)
#pragma GCC unroll 8
    for (int k = 0; k < Streams; ++k) {
      one[t][k] = Sum(signs[t * tokens_stride + k * channel_stride]);
      x[t][k] = Vector<Sum>{} + one[t][k];
    }
  int64_t j = 0;
  for (; j + kLanes<Sum> <= columns; j += kLanes<Sum>) {
    Vector<Sum> w[Streams];
#pragma GCC unroll 8
    for (int k = 0; k < Streams; ++k) w[k] = load_as<Sum>(weight[k] + j);
#pragma GCC unroll 2
    for (int t = 0; t < Tokens; ++t) {
      Vector<Sum> sum = w[0] * x[t][0];
#pragma GCC unroll 8
      for (int k = 1; k < Streams; ++k) sum += w[k] * x[t][k];
      Sum* so_far = sums + t * sums_stride + j;
      store(so_far, load(so_far) + sum);
    }
  }
  for (; j < columns; ++j)
    for (int t = 0; t < Tokens; ++t)
      for (int k = 0; k < Streams; ++k) sums[t * sums_stride + j] += Sum(to_float(weight[k][j])) * one[t][k];
}

// Channels [begin, end) of all tokens, `Streams` at once.
template <int Streams, typename W>
void add_block(const W* weight, int64_t row, int64_t columns, int64_t begin, int64_t end, const float* expanded,
               int64_t stride, int64_t tokens, SumOf<W>* sums, int64_t strip) {
  const int64_t part = (end - begin) / Streams;
  const W* rows[Streams];
  for (int64_t i = 0; i < part; ++i) {
    const float* signs = expanded + begin + i;
    for (int k = 0; k < Streams; ++k) rows[k] = weight + (begin + k * part + i) * row;
    int64_t t = 0;
    if constexpr (Streams <= 4)  // the signs of two tokens fit in registers
      for (; t + 2 <= tokens; t += 2)
        add_channels<2, Streams>(rows, columns, signs + t * stride, stride, part, sums + t * strip, strip);
    for (; t < tokens; ++t)
      add_channels<1, Streams>(rows, columns, signs + t * stride, stride, part, sums + t * strip, strip);
  }
  for (int64_t c = begin + part * Streams; c < end; ++c) {
    rows[0] = weight + c * row;
    for (int64_t t = 0; t < tokens; ++t)
      add_channels<1, 1>(rows, columns, expanded + t * stride + c, stride, 1, sums + t * strip, strip);
  }
}

// Totals of columns [column, column + columns) of the weight, in rows of `strip`; `sums` is room for those of a part of the channels.
template <typename W>
void add_strip(const MatmulArgs& args, const float* expanded, int64_t stride, int64_t tokens, int64_t column,
               int64_t columns, int64_t strip, SumOf<W>* sums, float* totals) {
  constexpr bool kInteger = std::is_integral_v<W>;
  const int64_t row = args.weight_columns();
  const int64_t block = !kInteger        ? MatmulKernels::kFloatChannels
                        : sizeof(W) == 1 ? MatmulKernels::kByteChannels
                                         : MatmulKernels::kGroup;
  const W* weight = static_cast<const W*>(args.weight) + column;
  std::fill(totals, totals + tokens * strip, 0.0f);
  for (int64_t begin = 0; begin < args.d; begin += block) {
    const int64_t end = std::min(begin + block, args.d);
    SumOf<W>* into = sums;
    if constexpr (!kInteger)
      if (begin == 0) into = totals;
    if (kInteger || begin > 0) std::fill(sums, sums + tokens * strip, SumOf<W>(0));
    const auto add = tokens == 1 ? add_block<8, W> : add_block<4, W>;
    add(weight, row, columns, begin, end, expanded, stride, tokens, into, strip);
    if constexpr (kInteger) {
      const float* factors = args.factors + (args.factor_blocks > 1 ? begin / block * row : 0) + column;
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t j = 0; j < columns; ++j) totals[t * strip + j] += factors[j] * float(sums[t * strip + j]);
    } else if (begin > 0) {
      for (int64_t i = 0; i < tokens * strip; ++i) totals[i] += sums[i];
    }
  }
}

template <typename W>
void few_block(const MatmulArgs& args, int64_t token, int64_t tokens, int64_t first, int64_t last, Scratch& scratch) {
  // The sums of a strip of columns stay in L1.
  const int64_t strip = std::max<int64_t>(4096 / tokens / 16 * 16, 64);
  const int64_t w = bytes_for(args.d), stride = (args.d + 15) / 16 * 16;
  const int parts = args.gated ? 2 : 1;
  float* expanded = scratch.get<float>(tokens * stride);
  SumOf<W>* sums = scratch.get<SumOf<W>>(tokens * strip);
  float* totals = scratch.get<float>(parts * tokens * strip);
  for (int64_t t = 0; t < tokens; ++t) expand_token(args, args.bits + (token + t) * w, expanded + t * stride);
  for (int64_t column = first; column < last; column += strip) {
    const int64_t columns = std::min(strip, last - column);
    for (int part = 0; part < parts; ++part) {
      float* of_part = totals + part * tokens * strip;
      add_strip<W>(args, expanded, stride, tokens, part * args.n + column, columns, strip, sums, of_part);
      for (int64_t t = 0; t < tokens; ++t) {
        const float token_scale = args.token_scale ? args.token_scale[token + t] : 1.0f;
        const float* bias = args.bias ? args.bias + part * args.n + column : nullptr;
        float* row = of_part + t * strip;
        for (int64_t j = 0; j < columns; ++j) row[j] = row[j] * token_scale + (bias ? bias[j] : 0.0f);
        if (part == 1) apply_gate(totals + t * strip, row, columns);
      }
    }
    with_float_type(args.out_type, [&](auto* type) {
      using Out = std::remove_pointer_t<decltype(type)>;
      for (int64_t t = 0; t < tokens; ++t) {
        Out* out = static_cast<Out*>(args.out) + (token + t) * args.n + column;
        for (int64_t j = 0; j < columns; ++j) out[j] = from_float<Out>(totals[t * strip + j]);
      }
    });
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
