// Operators of merging/merging.h.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

#include "core/tuning.h"
#include "merging/merging.h"
#include "torch/arguments.h"
#include "torch/parallel.h"

namespace btr {
namespace {

// Where the passages lie among the rows of a tensor: at equal distances, or at the offsets of packed ones.
struct Passages {
  int64_t count, rows_each;
  const int64_t* offsets;  // count + 1 of them, or null

  Passages(const char* name, const Tensor& rows, const Optional& cu_seqlens, int64_t total) {
    if (!cu_seqlens) {
      STD_TORCH_CHECK(rows.dim() >= 2, name, ": expected (B, n, ...)");
      count = rows.size(0);
      rows_each = rows.size(1);
      offsets = nullptr;
      return;
    }
    count = std::max<int64_t>(cu_seqlens->numel() - 1, 0);
    rows_each = 0;
    offsets = read<int64_t>("cu_seqlens", *cu_seqlens, ScalarType::Long, count + 1);
    for (int64_t i = 0; i < count; ++i)
      STD_TORCH_CHECK(0 <= offsets[i] && offsets[i] <= offsets[i + 1] && offsets[i + 1] <= total, name,
                      ": expected cu_seqlens that never decrease, within 0 to ", total);
  }
  int64_t begin(int64_t i) const { return offsets ? offsets[i] : i * rows_each; }
  int64_t length(int64_t i) const { return offsets ? offsets[i + 1] - offsets[i] : rows_each; }
};

void match_tokens(Tensor bits, Tensor keep, Optional lengths, Optional cu_seqlens, Tensor slot, Tensor new_lengths) {
  const int64_t w = token_size("bits", bits), tokens = rows_of(bits);
  const Passages passages("bits", bits, cu_seqlens, tokens);
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, tokens * w);
  const auto* wanted = read<int64_t>("keep", keep, ScalarType::Long, passages.count);
  const auto* given = lengths ? read<int64_t>("lengths", *lengths, ScalarType::Long, passages.count) : nullptr;
  auto* slots = write<int32_t>("slot", slot, ScalarType::Int, tokens);
  auto* left = write<int32_t>("new_lengths", new_lengths, ScalarType::Int, passages.count);
  const int64_t mean_length = tokens / std::max<int64_t>(passages.count, 1);
  const int64_t bytes_compared = mean_length * mean_length / 4 * w;
  parallel(passages.count, grain_of(tuning().parallel_bytes_per_thread, bytes_compared), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t rows = passages.length(i), start = passages.begin(i);
      const int64_t length = given ? std::clamp<int64_t>(given[i], 0, rows) : rows;
      left[i] = int32_t(merging_kernels().match(in + start * w, length, w, wanted[i], slots + start));
      std::fill(slots + start + length, slots + start + rows, -1);
    }
  });
}

// Votes are counted in int32: no size may be negative, and their sum must fit.
const int32_t* read_sizes(const Optional& sizes, int64_t tokens) {
  if (!sizes) return nullptr;
  const auto* values = read<int32_t>("sizes", *sizes, ScalarType::Int, tokens);
  int64_t total = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    STD_TORCH_CHECK(values[t] >= 0, "sizes: expected no negative value, got ", values[t]);
    total += values[t];
  }
  STD_TORCH_CHECK(total <= INT32_MAX, "sizes: expected a sum below 2^31, got ", total);
  return values;
}

// Calls merge(first token, tokens, first result row, result rows) for every passage, after checking its slots.
template <typename F>
void merge_passages(const Tensor& tokens, const Tensor& slot, const Optional& cu_in, const Optional& cu_out,
                    const Tensor& out, const Tensor& new_sizes, F&& merge) {
  STD_TORCH_CHECK(cu_in.has_value() == cu_out.has_value(), "cu_in, cu_out: expected both or neither");
  const int64_t total = rows_of(tokens), total_out = rows_of(out);
  const Passages from("tokens", tokens, cu_in, total), to("out", out, cu_out, total_out);
  STD_TORCH_CHECK(from.count == to.count, "out: expected ", from.count, " passages, got ", to.count);
  const auto* slots = read<int32_t>("slot", slot, ScalarType::Int, total);
  auto* sizes = write<int32_t>("new_sizes", new_sizes, ScalarType::Int, total_out);
  for (int64_t i = 0; i < from.count; ++i)
    for (int64_t t = from.begin(i); t < from.begin(i) + from.length(i); ++t)
      STD_TORCH_CHECK(slots[t] >= -1 && slots[t] < to.length(i), "slot: expected -1 to ", to.length(i) - 1, ", got ",
                      slots[t]);
  const int64_t row_bytes = last_size(out) * int64_t(out.element_size());
  const int64_t mean_bytes = total * row_bytes / std::max<int64_t>(from.count, 1);
  parallel(from.count, grain_of(tuning().parallel_bytes_per_thread, mean_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      merge(from.begin(i), from.length(i), slots + from.begin(i), to.begin(i), to.length(i), sizes + to.begin(i));
  });
  // Packed results may have spare rows behind the last passage.
  const int64_t used = to.offsets ? to.offsets[to.count] : total_out;
  auto* bytes = static_cast<char*>(out.mutable_data_ptr());
  std::fill(bytes + used * row_bytes, bytes + total_out * row_bytes, char(0));
  std::fill(sizes + used, sizes + total_out, 0);
}

void merge_bits(Tensor bits, Tensor slot, Optional sizes, Optional cu_in, Optional cu_out, Tensor out,
                Tensor new_sizes) {
  const int64_t w = token_size("bits", bits), rows = rows_of(bits);
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, rows * w);
  const auto* size = read_sizes(sizes, rows);
  auto* merged = write<uint8_t>("out", out, ScalarType::Byte, rows_of(out) * w);
  merge_passages(bits, slot, cu_in, cu_out, out, new_sizes,
                 [&](int64_t token, int64_t tokens, const int32_t* slots, int64_t row, int64_t result_rows,
                     int32_t* result_sizes) {
                   merging_kernels().merge_bits(in + token * w, tokens, w, slots, size ? size + token : nullptr,
                                                result_rows, merged + row * w, result_sizes);
                 });
}

void merge_tokens(Tensor x, Tensor slot, Optional sizes, Optional cu_in, Optional cu_out, Tensor out,
                  Tensor new_sizes) {
  const int64_t d = token_size("x", x), rows = rows_of(x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  const int64_t row_bytes = d * size_of(dtype);
  const auto* in = read<char>("x", x, rows * d);
  const auto* size = read_sizes(sizes, rows);
  auto* merged = write<char>("out", out, x.scalar_type(), rows_of(out) * d);
  merge_passages(x, slot, cu_in, cu_out, out, new_sizes,
                 [&](int64_t token, int64_t tokens, const int32_t* slots, int64_t row, int64_t result_rows,
                     int32_t* result_sizes) {
                   merging_kernels().merge_floats(in + token * row_bytes, dtype, tokens, d, slots,
                                                  size ? size + token : nullptr, result_rows, merged + row * row_bytes,
                                                  result_sizes);
                 });
}

STABLE_TORCH_LIBRARY_FRAGMENT(btr_native, m) {
  m.def("match_tokens(Tensor bits, Tensor keep, Tensor? lengths, Tensor? cu_seqlens, Tensor(a!) slot, "
        "Tensor(b!) new_lengths) -> ()");
  m.def("merge_bits(Tensor bits, Tensor slot, Tensor? sizes, Tensor? cu_in, Tensor? cu_out, Tensor(a!) out, "
        "Tensor(b!) new_sizes) -> ()");
  m.def("merge_tokens(Tensor x, Tensor slot, Tensor? sizes, Tensor? cu_in, Tensor? cu_out, Tensor(a!) out, "
        "Tensor(b!) new_sizes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("match_tokens", TORCH_BOX(&match_tokens));
  m.impl("merge_bits", TORCH_BOX(&merge_bits));
  m.impl("merge_tokens", TORCH_BOX(&merge_tokens));
}

}  // namespace
}  // namespace btr
