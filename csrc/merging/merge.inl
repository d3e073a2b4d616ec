// Majority vote and weighted mean of the tokens of each slot, compiled once for each instruction set.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/rows.h"
#include "core/scratch.h"
#include "core/types.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace btr::BTR_ISA_NAMESPACE {

inline bool is_row(int32_t slot, int64_t rows) { return slot >= 0 && slot < rows; }

// Which tokens each result row is made of: a list a row, in token order, built in one pass. A token whose slot is no
// row of the passage is in no list, so even a plan that nobody checked cannot lead out of the passage.
class SlotLists {
 public:
  SlotLists(const int32_t* slot, int64_t length, int64_t rows, Scratch& scratch)
      : head_(scratch.get<Head>(rows + 1 + (length + 1) / 2)), next_(reinterpret_cast<int32_t*>(head_ + rows + 1)) {
    for (int64_t r = 0; r <= rows; ++r) head_[r] = {-1, 0};
    for (int64_t t = length - 1; t >= 0; --t) {
      Head& head = head_[is_row(slot[t], rows) ? slot[t] : rows];
      next_[t] = head.first;
      head = {int32_t(t), head.count + 1};
    }
  }
  int32_t first(int64_t row) const { return head_[row].first; }  // -1 without tokens
  int32_t count(int64_t row) const { return head_[row].count; }
  int32_t next(int32_t token) const { return next_[token]; }  // -1 behind the last

 private:
  struct Head {
    int32_t first, count;
  };
  Head* head_;
  int32_t* next_;
};

// Tokens that a token stands for. Whatever its value, sums of fewer than 2^31 of them fit 63 bits.
inline uint32_t weight_of(const int32_t* sizes, int32_t token) { return sizes ? uint32_t(sizes[token]) : 1; }

constexpr int64_t kLineBytes = 64;

inline void prefetch(const void* line) { __builtin_prefetch(line); }

// --- Majority

// A register of channels. Counts are bit-sliced: plane p holds bit p of the counts of all channels, so that adding a
// vote is a carry that ripples through ands and xors.
#ifdef __AVX512BW__
constexpr int64_t kWordBytes = 64;
#else
constexpr int64_t kWordBytes = 32;
#endif
typedef uint64_t Word __attribute__((vector_size(kWordBytes)));

// f(offset, bytes) for words that cover w bytes; the last one overlaps its neighbour rather than being a part.
template <typename F>
__attribute__((always_inline)) inline void for_each_word(int64_t w, F&& f) {
  if (w < kWordBytes) return f(0, w);
  for (int64_t i = 0; i < w; i += kWordBytes) f(i + kWordBytes <= w ? i : w - kWordBytes, kWordBytes);
}

inline void read_word(const uint8_t* from, int64_t bytes, Word& to) {
  if (bytes == kWordBytes) {
    std::memcpy(&to, from, kWordBytes);
    return;
  }
#ifdef __AVX512BW__
  const __m512i part = _mm512_maskz_loadu_epi8((__mmask64(1) << bytes) - 1, from);
  std::memcpy(&to, &part, kWordBytes);
#else
  to = Word{};
  std::memcpy(&to, from, size_t(bytes));
#endif
}

inline void write_word(const Word& from, int64_t bytes, uint8_t* to) {
  if (bytes == kWordBytes) {
    std::memcpy(to, &from, kWordBytes);
    return;
  }
#ifdef __AVX512BW__
  __m512i part;
  std::memcpy(&part, &from, kWordBytes);
  _mm512_mask_storeu_epi8(to, (__mmask64(1) << bytes) - 1, part);
#else
  std::memcpy(to, &from, size_t(bytes));
#endif
}

// The votes of one row: `count` tokens, each with a weight (null: 1). The sum of the weights is odd.
struct Votes {
  const uint8_t** tokens;
  uint32_t* weights;
  int64_t count, total;
};

// Planes above the lowest that hold the counts of `total` votes: see `vote`.
inline int top_plane(int64_t total) {
  int top = 0;
  while (int64_t(1) << top < total / 2 + 1) ++top;
  return top;
}

// The bit that most votes have. The counts start at 2^top - (total / 2 + 1), so that the top plane is the result.
// kTop: the top plane where it is known when compiled, and the planes stay in registers; or -1.
template <int kTop>
void vote(const Votes& votes, int64_t w, uint8_t* out) {
  constexpr int kPlanes = kTop >= 0 ? kTop + 1 : 64;
  const int top = kTop >= 0 ? kTop : top_plane(votes.total);
  const int64_t start = (int64_t(1) << top) - (votes.total / 2 + 1);
  for_each_word(w, [&](int64_t at, int64_t bytes) {
    Word plane[kPlanes];
    for (int p = 0; p <= top; ++p) plane[p] = Word{} - uint64_t(start >> p & 1);
    Word a, b, carry, sum;
    int64_t i = 0;
    if (votes.weights) {
      for (; i < votes.count; ++i) {
        read_word(votes.tokens[i] + at, bytes, a);
        carry = Word{};
        for (int p = 0; p <= top; ++p) {
          const Word addend = a & (Word{} - (uint64_t(votes.weights[i]) >> p & 1));
          sum = plane[p] ^ addend;
          const Word both = plane[p] & addend;
          plane[p] = sum ^ carry;
          carry = both | (sum & carry);
        }
      }
    } else {
      // An odd number: one, then pairs, which cost the lowest plane one step for two.
      read_word(votes.tokens[0] + at, bytes, carry);
      for (int p = 0; p <= top; ++p) {
        const Word both = plane[p] & carry;
        plane[p] ^= carry;
        carry = both;
      }
      for (i = 1; i < votes.count; i += 2) {
        read_word(votes.tokens[i] + at, bytes, a);
        read_word(votes.tokens[i + 1] + at, bytes, b);
        sum = plane[0] ^ a;
        carry = (plane[0] & a) | (sum & b);
        plane[0] = sum ^ b;
        for (int p = 1; p <= top; ++p) {
          const Word both = plane[p] & carry;
          plane[p] ^= carry;
          carry = both;
        }
      }
    }
    write_word(plane[top], bytes, out + at);
  });
}

inline void vote(const Votes& votes, int64_t w, uint8_t* out) {
  switch (top_plane(votes.total)) {
    case 1: return vote<1>(votes, w, out);
    case 2: return vote<2>(votes, w, out);
    case 3: return vote<3>(votes, w, out);
    case 4: return vote<4>(votes, w, out);
    default: return vote<-1>(votes, w, out);
  }
}

// Rows that one token decides: one token is the result, and so is the larger of two: equal ones agree or tie, and a tie
// takes the earliest token's bit. Most rows are of this kind; the others are copied alike, to keep this loop free of
// unpredictable branches, and listed in `undecided`. Returns how many those are.
inline int64_t copy_rows(const uint8_t* bits, int64_t length, int64_t w, const int32_t* sizes, const SlotLists& lists,
                         int64_t rows, uint8_t* out, int32_t* new_sizes, int32_t* undecided) {
  int64_t open = 0;
  const int64_t ahead = rows > 0 ? length * w / rows : 0;
  const uint8_t* next = bits + length * w;
  for (int64_t r = 0; r < rows; ++r, next += ahead, out += w) {
    // The next passage usually follows in memory; a prefetch of anything else does nothing.
    for (int64_t i = 0; i < ahead; i += kLineBytes) prefetch(next + i);
    int32_t token = lists.first(r);
    const int32_t count = lists.count(r);
    int64_t total = count;
    if (sizes) {
      total = 0;
      for (int32_t t = token; t >= 0; t = lists.next(t)) total += weight_of(sizes, t);
      if (count == 2 && weight_of(sizes, lists.next(token)) > weight_of(sizes, token)) token = lists.next(token);
    }
    new_sizes[r] = int32_t(total);
    if (total == 0) {
      std::memset(out, 0, size_t(w));
      continue;
    }
    const uint8_t* from = bits + token * w;
    for_each_word(w, [&](int64_t at, int64_t bytes) {
      Word word;
      read_word(from + at, bytes, word);
      write_word(word, bytes, out + at);
    });
    undecided[open] = int32_t(r);
    open += count > 2;
  }
  return open;
}

inline void merge_bits(const uint8_t* bits, int64_t length, int64_t w, const int32_t* slot, const int32_t* sizes,
                       int64_t rows, uint8_t* out, int32_t* new_sizes) {
  Scratch scratch;
  const SlotLists lists(slot, length, rows, scratch);
  Votes votes;
  votes.tokens = scratch.get<const uint8_t*>(length + 1 + (length + 2) / 2 + (rows + 1) / 2);
  uint32_t* weights = reinterpret_cast<uint32_t*>(votes.tokens + length + 1);
  int32_t* undecided = reinterpret_cast<int32_t*>(weights + length + 1);
  const int64_t open = copy_rows(bits, length, w, sizes, lists, rows, out, new_sizes, undecided);
  for (int64_t i = 0; i < open; ++i) {
    const int32_t r = undecided[i];
    votes.count = votes.total = 0;
    votes.weights = sizes ? weights : nullptr;
    const auto add = [&](int32_t token, uint32_t weight) {
      votes.tokens[votes.count] = bits + token * w;
      weights[votes.count++] = weight;
      votes.total += weight;
    };
    for (int32_t t = lists.first(r); t >= 0; t = lists.next(t)) add(t, weight_of(sizes, t));
    // One more vote of the earliest token decides ties, and nothing else.
    if (votes.total % 2 == 0) add(lists.first(r), 1);
    vote(votes, w, out + r * w);
  }
}

// --- Mean and its gradient. Bound by memory: every row is read once and written once, in blocks of channels whose sums
// stay in registers, and the rows that come next are prefetched meanwhile, since lists jump about in the passage.

typedef float Floats __attribute__((vector_size(32)));
constexpr int kLanes = sizeof(Floats) / sizeof(float);

template <typename T>
void read_floats(const T* from, Floats& to) {
#ifdef __F16C__
  if constexpr (std::is_same_v<T, half_t>) {
    to = Floats(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    return;
  }
#endif
  if constexpr (std::is_same_v<T, float>)
    std::memcpy(&to, from, sizeof(to));
  else
    for (int i = 0; i < kLanes; ++i) to[i] = to_float(from[i]);
}

// kStream: past the caches; `to` is then aligned.
template <bool kStream, typename T>
void write_floats(const Floats& from, T* to) {
  T narrow[kLanes];
  const void* value = narrow;
  if constexpr (std::is_same_v<T, float>) {
    value = &from;
  } else {
#ifdef __F16C__
    if constexpr (std::is_same_v<T, half_t>)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(narrow), _mm256_cvtps_ph(__m256(from), _MM_FROUND_TO_NEAREST_INT));
    else
#endif
      for (int i = 0; i < kLanes; ++i) narrow[i] = from_float<T>(from[i]);
  }
#ifdef __AVX__
  if constexpr (kStream) {
    if constexpr (sizeof(T) == 4)
      _mm256_stream_ps(to, from);
    else
      _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(value)));
    return;
  }
#endif
  std::memcpy(to, value, sizeof(T) * kLanes);
}

// The tokens that one row is the mean of, with their sizes as weights (null: 1).
template <typename T>
struct Terms {
  const T** tokens;
  float* weights;
  int64_t count, total;
};

constexpr int kBlock = 4;  // vectors of channels that are summed at a time

// Channels c and so on of the mean: kVectors vectors.
template <typename T, bool kStream, bool kWeighted, int kVectors>
void mean_of(const Terms<T>& terms, int64_t c, float divisor, bool exact, T* to) {
  Floats sum[kVectors], x;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    read_floats(terms.tokens[0] + c + v * kLanes, sum[v]);
    if (kWeighted) sum[v] *= terms.weights[0];
  }
  for (int64_t i = 1; i < terms.count; ++i) {
    const T* from = terms.tokens[i] + c;
    const float weight = kWeighted ? terms.weights[i] : 1.0f;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      read_floats(from + v * kLanes, x);
      sum[v] += kWeighted ? x * weight : x;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = exact ? sum[v] * divisor : sum[v] / divisor;
    write_floats<kStream>(sum[v], to + c + v * kLanes);
  }
}

template <typename T, bool kStream, bool kWeighted>
void mean(const Terms<T>& terms, const Terms<T>& next, int64_t d, T* to) {
  // The inverse of a power of two is exact, and a multiplication costs less than a division.
  const int64_t total = terms.total > 0 ? terms.total : 1;
  const bool exact = (total & (total - 1)) == 0;
  const float divisor = exact ? 1.0f / float(total) : float(total);
  int64_t c = 0;
  for (; c + kBlock * kLanes <= d; c += kBlock * kLanes) {
    for (int64_t i = 0; i < next.count; ++i)
      for (int64_t at = 0; at < int64_t(kBlock * kLanes * sizeof(T)); at += kLineBytes)
        prefetch(reinterpret_cast<const char*>(next.tokens[i] + c) + at);
    mean_of<T, kStream, kWeighted, kBlock>(terms, c, divisor, exact, to);
  }
  for (; c + kLanes <= d; c += kLanes) mean_of<T, kStream, kWeighted, 1>(terms, c, divisor, exact, to);
  for (; c < d; ++c) {
    float sum = 0;
    for (int64_t i = 0; i < terms.count; ++i) {
      const float x = to_float(terms.tokens[i][c]) * (kWeighted ? terms.weights[i] : 1.0f);
      sum = i ? sum + x : x;
    }
    to[c] = from_float<T>(exact ? sum * divisor : sum / divisor);
  }
}

template <typename T, bool kStream>
void merge_rows(const T* tokens, int64_t d, const SlotLists& lists, const int32_t* sizes, int64_t rows,
                Terms<T> buffers[2], T* out, int32_t* new_sizes) {
  float* const weights[2] = {buffers[0].weights, buffers[1].weights};
  const auto collect = [&](int64_t row) {
    Terms<T>& terms = buffers[row & 1];
    terms.count = terms.total = 0;
    // The mean of one token is that token, whatever its weight.
    const int32_t first = row < rows ? lists.first(row) : -1;
    const bool weighted = sizes && first >= 0 && (lists.count(row) > 1 || sizes[first] == 0);
    terms.weights = weighted ? weights[row & 1] : nullptr;
    for (int32_t t = first; t >= 0; t = lists.next(t)) {
      const uint32_t size = weight_of(sizes, t);
      if (weighted) terms.weights[terms.count] = float(size);
      terms.tokens[terms.count++] = tokens + t * d;
      terms.total += size;
    }
  };
  collect(0);
  for (int64_t r = 0; r < rows; ++r) {
    collect(r + 1);
    Terms<T>& terms = buffers[r & 1];
    new_sizes[r] = int32_t(terms.total);
    if (!terms.weights && terms.count == 1) terms.total = 1;
    const Terms<T>& next = buffers[(r + 1) & 1];
    if (terms.count == 0)
      std::memset(static_cast<void*>(out + r * d), 0, sizeof(T) * size_t(d));
    else if (terms.weights)
      mean<T, kStream, true>(terms, next, d, out + r * d);
    else
      mean<T, kStream, false>(terms, next, d, out + r * d);
  }
}

// Calls f with the row type and whether rows of d at `out` can be streamed.
template <typename F>
void with_rows(DType dtype, int64_t d, const void* out, bool streaming, F&& f) {
  with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (streaming && reinterpret_cast<uintptr_t>(out) % 32 == 0 && d * int64_t(sizeof(T)) % 32 == 0) {
      f(type, std::true_type{});
#ifdef __AVX__
      _mm_sfence();
#endif
    } else {
      f(type, std::false_type{});
    }
  });
}

inline void merge_floats(const void* x, DType dtype, int64_t length, int64_t d, const int32_t* slot,
                         const int32_t* sizes, int64_t rows, void* out, int32_t* new_sizes, bool streaming) {
  Scratch scratch;
  const SlotLists lists(slot, length, rows, scratch);
  with_rows(dtype, d, out, streaming, [&](auto* type, auto stream) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T** pointers = scratch.get<const T*>(2 * length);
    float* weights = scratch.get<float>(2 * length);
    Terms<T> buffers[2] = {{pointers, weights, 0, 0}, {pointers + length, weights + length, 0, 0}};
    merge_rows<T, stream.value>(static_cast<const T*>(x), d, lists, sizes, rows, buffers, static_cast<T*>(out),
                                new_sizes);
  });
}

// One row of the gradient: row * share.
template <typename T, bool kStream>
void scale_row(const T* row, float share, int64_t d, T* to) {
  Floats x;
  int64_t c = 0;
  for (; c + kLanes <= d; c += kLanes) {
    read_floats(row + c, x);
    x *= share;
    write_floats<kStream>(x, to + c);
  }
  for (; c < d; ++c) to[c] = from_float<T>(to_float(row[c]) * share);
}

inline void merge_floats_backward(const void* grad, DType dtype, int64_t length, int64_t d, const int32_t* slot,
                                  const int32_t* sizes, int64_t rows, const int32_t* new_sizes, void* grad_x,
                                  bool streaming) {
  with_rows(dtype, d, grad_x, streaming, [&](auto* type, auto stream) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* to = static_cast<T*>(grad_x);
    for (int64_t t = 0; t < length; ++t, to += d) {
      if (!is_row(slot[t], rows)) {
        std::memset(static_cast<void*>(to), 0, sizeof(T) * size_t(d));
        continue;
      }
      const float total = float(new_sizes[slot[t]] > 1 ? new_sizes[slot[t]] : 1);
      const T* row = static_cast<const T*>(grad) + slot[t] * d;
      scale_row<T, stream.value>(row, float(weight_of(sizes, int32_t(t))) / total, d, to);
    }
  });
}

}  // namespace btr::BTR_ISA_NAMESPACE
