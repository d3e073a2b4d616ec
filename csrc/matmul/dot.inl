// Tokens of float32 times the rows of a weight: each row is read once for all tokens of a block.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/rows.h"
#include "core/scratch.h"
#include "core/vectors.inl"
#include "matmul/gelu.inl"
#include "matmul/matmul.h"

namespace btr::BTR_ISA_NAMESPACE {

// The weight, n rows of it or 2 n with a gate, and what becomes of the products; null for what there is none of.
struct Products {
  const void* weight;
  int64_t n, d;
  bool gated;
  const float *bias, *token_scale, *residual;
  void* out;
  DType out_type;
};

// Rows and tokens that are multiplied at once: their sums fill the registers. Fewer loads for each multiply-add: 10 for
// 24, or 7 for 12.
#if defined(__AVX512F__)
constexpr int kTileRows = 4, kTileTokens = 6;
#else
constexpr int kTileRows = 3, kTileTokens = 4;
#endif

// A vector that is used several times: without this the compiler reads it from memory for each use.
BTR_INLINE Floats loaded(const float* p) {
  Floats v = load(p);
#if defined(__x86_64__) && !defined(BTR_EMULATE_AVX512)
  asm("" : "+v"(v));
#endif
  return v;
}

// sums[row][token] of `Rows` weight rows, `row` apart, times `Tokens` expanded tokens, over d channels. A row is too short
// for the hardware to fetch ahead in time: from channel `ahead` on, `ahead_step` of them for each vector multiplied, the
// rows after these are fetched.
template <int Rows, int Tokens>
BTR_INLINE void dot_rows(const float* tokens, int64_t stride, const float* const* rows, int64_t row, int64_t d,
                         int64_t ahead, int64_t ahead_step, float* sums) {
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
        if (k % (64 / kVectorBytes) == 0) __builtin_prefetch(rows[r] + Rows * row + ahead);
        w[r] = Tokens > 1 ? loaded(rows[r] + c + kLanes<float> * k) : load(rows[r] + c + kLanes<float> * k);
      }
#pragma GCC unroll 6
      for (int t = 0; t < Tokens; ++t) {
        const Floats x = loaded(tokens + t * stride + c + kLanes<float> * k);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) lanes[r][t][k] += x * w[r];
      }
      ahead += ahead_step;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 6
    for (int t = 0; t < Tokens; ++t) {
      Floats v = lanes[r][t][0];
#pragma GCC unroll 8
      for (int k = 1; k < kChains; ++k) v += lanes[r][t][k];
      sums[r * Tokens + t] = sum_of(v);
    }
  }
  for (; c < d; ++c)
    for (int r = 0; r < Rows; ++r)
      for (int t = 0; t < Tokens; ++t) sums[r * Tokens + t] += tokens[t * stride + c] * rows[r][c];
}

// `Rows` rows from `n` on, for all tokens of the block.
template <int Rows, typename W>
void dot_columns(const Products& p, const float* expanded, int64_t stride, int64_t token, int64_t tokens,
                 int64_t n, float* converted) {
  // Of the gate, or all there is; and of the linear part.
  const float* rows[2][Rows];
  const auto row = [&](int part, int r) {
    return load_row(static_cast<const W*>(p.weight) + (part * p.n + n + r) * p.d, p.d,
                    converted + (part * Rows + r) * stride);
  };
  for (int r = 0; r < Rows; ++r) {
    rows[0][r] = row(0, r);
    if (p.gated) rows[1][r] = row(1, r);
  }
  const auto dot = [&](auto count, int64_t first) {
    constexpr int kTokens = decltype(count)::value;
    float values[2][Rows * kTokens];
    for (int part = 0; part < (p.gated ? 2 : 1); ++part) {
      for (int64_t begin = 0; begin < p.d; begin += MatmulKernels::kFloatChannels) {
        const float* from[Rows];
        for (int r = 0; r < Rows; ++r) from[r] = rows[part][r] + begin;
        float sums[Rows * kTokens];
        const float* x = expanded + first * stride + begin;
        const int64_t channels = std::min(p.d - begin, MatmulKernels::kFloatChannels);
        dot_rows<Rows, kTokens>(x, stride, from, p.d, channels, first * channels / tokens,
                                kTokens * kLanes<float> / tokens, sums);
        for (int i = 0; i < Rows * kTokens; ++i) values[part][i] = begin ? values[part][i] + sums[i] : sums[i];
      }
      for (int r = 0; r < Rows; ++r) {
        const float bias = p.bias ? p.bias[part * p.n + n + r] : 0.0f;
        for (int t = 0; t < kTokens; ++t) {
          const float token_scale = p.token_scale ? p.token_scale[token + first + t] : 1.0f;
          values[part][r * kTokens + t] = values[part][r * kTokens + t] * token_scale + bias;
        }
      }
    }
    if (p.gated) apply_gate(values[0], values[1], Rows * kTokens);
    with_float_type(p.out_type, [&](auto* type) {
      using Out = std::remove_pointer_t<decltype(type)>;
      for (int r = 0; r < Rows; ++r)
        for (int t = 0; t < kTokens; ++t) {
          const int64_t at = (token + first + t) * p.n + n + r;
          const float y = values[0][r * kTokens + t] + (p.residual ? p.residual[at] : 0.0f);
          static_cast<Out*>(p.out)[at] = from_float<Out>(y);
        }
    });
  };
  int64_t t = 0;
  for (; t + kTileTokens <= tokens; t += kTileTokens) dot(std::integral_constant<int, kTileTokens>(), t);
  if (kTileTokens > 4 && t + 4 <= tokens) {
    dot(std::integral_constant<int, 4>(), t);
    t += 4;
  }
  if (t + 2 <= tokens) {
    dot(std::integral_constant<int, 2>(), t);
    t += 2;
  }
  if (t < tokens) dot(std::integral_constant<int, 1>(), t);
}

// Columns [first, last) of tokens [token, token + tokens); expand(t, row) writes token t as float32.
template <typename W, typename Expand>
void dot_block(const Products& p, int64_t token, int64_t tokens, int64_t first, int64_t last, Scratch& scratch,
               Expand&& expand) {
  // Several rows at once save loads. A single token saves none, and reads a weight from memory faster in one stream.
  constexpr int kRows = kTileRows;
  const int64_t stride = (p.d + 15) / 16 * 16;
  float* expanded = scratch.get<float>(tokens * stride);
  float* converted = scratch.get<float>(2 * kRows * stride);
  for (int64_t t = 0; t < tokens; ++t) expand(token + t, expanded + t * stride);
  int64_t n = first;
  if (tokens > 1)
    for (; n + kRows <= last; n += kRows) dot_columns<kRows, W>(p, expanded, stride, token, tokens, n, converted);
  for (; n < last; ++n) dot_columns<1, W>(p, expanded, stride, token, tokens, n, converted);
}

}  // namespace btr::BTR_ISA_NAMESPACE
