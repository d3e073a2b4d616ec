// The kernels of matmul.h for few tokens.
#include <algorithm>
#include <type_traits>

#include "core/rows.h"
#include "core/scratch.h"
#include "core/vectors.inl"
#include "matmul/dot.inl"
#include "matmul/gelu.inl"
#include "matmul/matmul.h"

namespace btr::BTR_ISA_NAMESPACE {

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

// --- Row-major weights.

template <typename W>
void few_rows(const MatmulArgs& args, int64_t token, int64_t tokens, int64_t first, int64_t last, Scratch& scratch) {
  const Products products{args.weight,      args.n,  args.d,   args.gated,   args.bias,
                          args.token_scale, nullptr, args.out, args.out_type};
  const int64_t w = bytes_for(args.d);
  dot_block<W>(products, token, tokens, first, last, scratch,
               [&](int64_t t, float* row) { expand_token(args, args.bits + t * w, row); });
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
