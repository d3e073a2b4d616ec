// Kernels of attention.h, written with the compiler's vector extension, so that every instruction set compiles the same
// code to its own vectors.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "attention/attention.h"
#include "core/exponential.inl"
#include "core/rows.h"
#include "core/scratch.h"
#include "core/vectors.inl"

namespace btr::BTR_ISA_NAMESPACE {

inline float dot(const float* a, const float* b, int64_t d) {
  Floats lanes = {};
  int64_t c = 0;
  for (; c + kLanes<float> <= d; c += kLanes<float>) lanes += load(a + c) * load(b + c);
  float sum = sum_of(lanes);
  for (; c < d; ++c) sum += a[c] * b[c];
  return sum;
}

// total += factor * x
inline void add_scaled(float* total, float factor, const float* x, int64_t d) {
  int64_t c = 0;
  for (; c + kLanes<float> <= d; c += kLanes<float>) store(total + c, load(total + c) + factor * load(x + c));
  for (; c < d; ++c) total[c] += factor * x[c];
}

constexpr float kNone = -std::numeric_limits<float>::infinity();

// Logits to weights, relative to the largest logit; that and their sum. All weights are 0 where every logit is -infinity.
// The room behind them, up to a whole vector, is overwritten.
inline void weigh(float* logits, int64_t count, float* most, float* sum) {
  *most = kNone;
  *sum = 0.0f;
  bool hidden = true;
  for (int64_t s = 0; s < count; ++s) {
    *most = std::max(*most, logits[s]);
    hidden &= logits[s] == kNone;
  }
  if (hidden) {
    std::fill(logits, logits + count, 0.0f);
    return;
  }
  const int64_t padded = (count + kLanes<float> - 1) / kLanes<float> * kLanes<float>;
  std::fill(logits + count, logits + padded, kNone);
  Floats lanes = {};
  for (int64_t s = 0; s < padded; s += kLanes<float>) {
    const Floats x = load(logits + s) - *most;
    const Floats power = x < -87.0f ? Floats{} : exponential(x);
    store(logits + s, power);
    lanes += power;
  }
  *sum = sum_of(lanes);
}

// f(s, row) for every row as float32; the rows after it are fetched meanwhile, across the pages that the hardware stops
// at.
template <typename T, typename F>
void each_row(const T* rows, int64_t count, int64_t width, float* buffer, F&& f) {
  constexpr int64_t kAhead = 2, kLine = 64 / int64_t(sizeof(T));
  for (int64_t s = 0; s < count; ++s) {
    const T* row = rows + s * width;
    for (int64_t c = 0; c < width; c += kLine) __builtin_prefetch(row + kAhead * width + c);
    f(s, load_row(row, width, buffer));
  }
}

// Keys [first, last) of a token.
template <typename T>
void attend_part(const AttentionArgs& args, int64_t token, int64_t first, int64_t last, float* partial) {
  const int64_t d = args.head_size, inner = args.heads * d, count = last - first;
  const int64_t batch = token / args.tokens, from = (batch * args.count + first) * inner;
  const int64_t room = (count + kLanes<float> - 1) / kLanes<float> * kLanes<float>;
  float *most = partial, *sum = most + args.heads, *mixed = sum + args.heads;
  Scratch scratch;
  float* logits = scratch.get<float>(args.heads * room);
  float* buffer = scratch.get<float>(inner);
  const float* query =
      load_row(static_cast<const T*>(args.query) + token * inner, inner, scratch.get<float>(inner));
  each_row(static_cast<const T*>(args.keys) + from, count, inner, buffer, [&](int64_t s, const float* key) {
    for (int64_t h = 0; h < args.heads; ++h) logits[h * room + s] = dot(query + h * d, key + h * d, d);
  });
  for (int64_t h = 0; h < args.heads; ++h) {
    float* of_head = logits + h * room;
    if (args.bias) {
      const float* bias = args.bias + batch * args.bias_of_batch + h * args.bias_of_head +
                          token % args.tokens * args.bias_of_token + first;
      for (int64_t s = 0; s < count; ++s) of_head[s] += bias[s];
    }
    weigh(of_head, count, most + h, sum + h);
  }
  std::fill(mixed, mixed + inner, 0.0f);
  each_row(static_cast<const T*>(args.values) + from, count, inner, buffer, [&](int64_t s, const float* value) {
    for (int64_t h = 0; h < args.heads; ++h) add_scaled(mixed + h * d, logits[h * room + s], value + h * d, d);
  });
}

template <typename T>
void combine_parts(const AttentionArgs& args, int64_t parts, int64_t token, const float* partial) {
  const int64_t d = args.head_size, inner = args.heads * d, room = attention_room(args);
  const float* first = partial + token * parts * room;
  T* out = static_cast<T*>(args.out) + token * inner;
  Scratch scratch;
  float* mixed = scratch.get<float>(d);
  for (int64_t h = 0; h < args.heads; ++h) {
    float most = kNone, sum = 0.0f;
    for (int64_t part = 0; part < parts; ++part) most = std::max(most, first[part * room + h]);
    std::fill(mixed, mixed + d, 0.0f);
    for (int64_t part = 0; part < parts; ++part) {
      const float* of_part = first + part * room;
      // 0 for a part whose keys are all hidden; infinite and NaN sums stay what they are.
      const float factor = of_part[h] == most ? 1.0f : std::exp(of_part[h] - most);
      sum += factor * of_part[args.heads + h];
      add_scaled(mixed, factor, of_part + 2 * args.heads + h * d, d);
    }
    // A sum of 0: every key is hidden.
    for (int64_t c = 0; c < d; ++c) out[h * d + c] = from_float<T>(sum == 0.0f ? 0.0f : mixed[c] / sum);
  }
}

inline void run_attention(const AttentionArgs& args, int64_t parts, int64_t begin, int64_t end, float* partial) {
  with_float_type(args.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t part = piece % parts;
      attend_part<T>(args, piece / parts, args.count * part / parts, args.count * (part + 1) / parts,
                     partial + piece * attention_room(args));
    }
  });
}

inline void combine_attention(const AttentionArgs& args, int64_t parts, int64_t begin, int64_t end,
                              const float* partial) {
  with_float_type(args.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t token = begin; token < end; ++token) combine_parts<T>(args, parts, token, partial);
  });
}

}  // namespace btr::BTR_ISA_NAMESPACE
