// Kernels of attention.h, written with the compiler's vector extension, so that every instruction set compiles the same
// code to its own vectors.
#include <algorithm>
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

// Logits to weights that sum to 1, all 0 where every logit is -infinity. The room behind them, up to a whole vector, is
// overwritten.
inline void softmax(float* logits, int64_t count) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  float most = kNone;
  bool hidden = true;
  for (int64_t s = 0; s < count; ++s) {
    most = std::max(most, logits[s]);
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
    const Floats x = load(logits + s) - most;
    const Floats power = x < -87.0f ? Floats{} : exponential(x);
    store(logits + s, power);
    lanes += power;
  }
  const float factor = 1.0f / sum_of(lanes);
  for (int64_t s = 0; s < count; ++s) logits[s] *= factor;
}

// f(s, row) for the part [first, first + width) of every row s, as float32; the rows after it are fetched meanwhile,
// since parts of rows are no sequence that the hardware would fetch ahead.
template <typename T, typename F>
void each_row(const T* rows, int64_t count, int64_t stride, int64_t first, int64_t width, float* buffer, F&& f) {
  constexpr int64_t kAhead = 4, kLine = 64 / int64_t(sizeof(T));
  for (int64_t s = 0; s < count; ++s) {
    const T* row = rows + s * stride + first;
    for (int64_t c = 0; c < width; c += kLine) __builtin_prefetch(row + kAhead * stride + c);
    f(s, load_row(row, width, buffer));
  }
}

template <typename T>
void attend_heads(const AttentionArgs& args, int64_t row, int64_t first_head, int64_t last_head) {
  const int64_t d = args.head_size, heads = last_head - first_head, width = heads * d, inner = args.heads * d;
  const int64_t batch = row / args.tokens, first = first_head * d;
  const int64_t room = (args.count + kLanes<float> - 1) / kLanes<float> * kLanes<float>;
  Scratch scratch;
  float* logits = scratch.get<float>(heads * room);
  float* total = scratch.get<float>(width);
  float* query_room = scratch.get<float>(width);
  float* buffer = scratch.get<float>(width);
  const float* query = load_row(static_cast<const T*>(args.query) + row * inner + first, width, query_room);
  each_row(static_cast<const T*>(args.keys) + batch * args.count * inner, args.count, inner, first, width, buffer,
           [&](int64_t s, const float* key) {
             for (int64_t h = 0; h < heads; ++h) logits[h * room + s] = dot(query + h * d, key + h * d, d);
           });
  for (int64_t h = 0; h < heads; ++h) {
    float* of_head = logits + h * room;
    if (args.bias) {
      const float* bias = args.bias + batch * args.bias_of_batch + (first_head + h) * args.bias_of_head +
                          row % args.tokens * args.bias_of_token;
      for (int64_t s = 0; s < args.count; ++s) of_head[s] += bias[s];
    }
    softmax(of_head, args.count);
  }
  std::fill(total, total + width, 0.0f);
  each_row(static_cast<const T*>(args.values) + batch * args.count * inner, args.count, inner, first, width, buffer,
           [&](int64_t s, const float* value) {
             for (int64_t h = 0; h < heads; ++h) add_scaled(total + h * d, logits[h * room + s], value + h * d, d);
           });
  T* out = static_cast<T*>(args.out) + row * inner + first;
  for (int64_t c = 0; c < width; ++c) out[c] = from_float<T>(total[c]);
}

inline void run_attention(const AttentionArgs& args, int64_t parts, int64_t begin, int64_t end) {
  with_float_type(args.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t part = piece % parts;
      attend_heads<T>(args, piece / parts, args.heads * part / parts, args.heads * (part + 1) / parts);
    }
  });
}

}  // namespace btr::BTR_ISA_NAMESPACE
