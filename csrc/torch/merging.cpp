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

const int32_t* read_sizes(const Optional& sizes, int64_t tokens) {
  return sizes ? read<int32_t>("sizes", *sizes, ScalarType::Int, tokens) : nullptr;
}

// The tokens and result rows of a merge. Values of slots and sizes are not checked here: whatever they are, the kernels
// stay within the passage.
struct Merge {
  Passages from, to;
  int64_t tokens, rows;
  const int32_t *slots, *sizes;

  Merge(const Tensor& all_tokens, const Tensor& all_rows, const Tensor& slot, const Optional& size,
        const Optional& cu_in, const Optional& cu_out)
      : from("tokens", all_tokens, cu_in, rows_of(all_tokens)), to("rows", all_rows, cu_out, rows_of(all_rows)),
        tokens(rows_of(all_tokens)), rows(rows_of(all_rows)),
        slots(read<int32_t>("slot", slot, ScalarType::Int, tokens)), sizes(read_sizes(size, tokens)) {
    STD_TORCH_CHECK(cu_in.has_value() == cu_out.has_value(), "cu_in, cu_out: expected both or neither");
    STD_TORCH_CHECK(from.count == to.count, "rows: expected ", from.count, " passages, got ", to.count);
  }

  struct Passage {
    int64_t token, tokens, row, rows;
    const int32_t *slots, *sizes;
  };

  // merge(passage) for every passage.
  template <typename F>
  void each(int64_t token_bytes, F&& merge) const {
    const int64_t mean_bytes = tokens * token_bytes / std::max<int64_t>(from.count, 1);
    parallel(from.count, grain_of(tuning().parallel_bytes_per_thread, mean_bytes), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t token = from.begin(i);
        merge(Passage{token, from.length(i), to.begin(i), to.length(i), slots + token, sizes ? sizes + token : nullptr});
      }
    });
  }

  // Packed results may have spare rows behind the last passage, which are 0.
  void clear_spare_rows(char* out, int64_t row_bytes, int32_t* new_sizes) const {
    const int64_t used = to.offsets ? to.offsets[to.count] : rows;
    std::fill(out + used * row_bytes, out + rows * row_bytes, char(0));
    std::fill(new_sizes + used, new_sizes + rows, 0);
  }
};

void merge_bits(Tensor bits, Tensor slot, Optional sizes, Optional cu_in, Optional cu_out, Tensor out,
                Tensor new_sizes) {
  const int64_t w = token_size("bits", bits);
  const Merge merge(bits, out, slot, sizes, cu_in, cu_out);
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, merge.tokens * w);
  auto* merged = write<uint8_t>("out", out, ScalarType::Byte, merge.rows * w);
  auto* merged_sizes = write<int32_t>("new_sizes", new_sizes, ScalarType::Int, merge.rows);
  merge.each(w, [&](const Merge::Passage& p) {
    merging_kernels().merge_bits(in + p.token * w, p.tokens, w, p.slots, p.sizes, p.rows, merged + p.row * w,
                                 merged_sizes + p.row);
  });
  merge.clear_spare_rows(reinterpret_cast<char*>(merged), w, merged_sizes);
}

void merge_tokens(Tensor x, Tensor slot, Optional sizes, Optional cu_in, Optional cu_out, Tensor out,
                  Tensor new_sizes) {
  const int64_t d = token_size("x", x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  const Merge merge(x, out, slot, sizes, cu_in, cu_out);
  const auto* in = read<char>("x", x, merge.tokens * d);
  auto* merged = write<char>("out", out, x.scalar_type(), merge.rows * d);
  auto* merged_sizes = write<int32_t>("new_sizes", new_sizes, ScalarType::Int, merge.rows);
  const int64_t row_bytes = d * size_of(dtype);
  const bool streaming = merge.rows * row_bytes > tuning().merging_streaming_bytes;
  merge.each(row_bytes, [&](const Merge::Passage& p) {
    merging_kernels().merge_floats(in + p.token * row_bytes, dtype, p.tokens, d, p.slots, p.sizes, p.rows,
                                   merged + p.row * row_bytes, merged_sizes + p.row, streaming);
  });
  merge.clear_spare_rows(merged, row_bytes, merged_sizes);
}

void merge_tokens_backward(Tensor grad, Tensor slot, Optional sizes, Tensor new_sizes, Optional cu_in, Optional cu_out,
                           Tensor grad_x) {
  const int64_t d = token_size("grad", grad);
  const DType dtype = dtype_of("grad", grad, {DType::f32, DType::f16, DType::bf16});
  const Merge merge(grad_x, grad, slot, sizes, cu_in, cu_out);
  const auto* in = read<char>("grad", grad, merge.rows * d);
  const auto* merged_sizes = read<int32_t>("new_sizes", new_sizes, ScalarType::Int, merge.rows);
  auto* out = write<char>("grad_x", grad_x, grad.scalar_type(), merge.tokens * d);
  const int64_t row_bytes = d * size_of(dtype);
  const bool streaming = merge.tokens * row_bytes > tuning().merging_streaming_bytes;
  merge.each(row_bytes, [&](const Merge::Passage& p) {
    merging_kernels().merge_floats_backward(in + p.row * row_bytes, dtype, p.tokens, d, p.slots, p.sizes, p.rows,
                                            merged_sizes + p.row, out + p.token * row_bytes, streaming);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(btr_native, m) {
  m.def("match_tokens(Tensor bits, Tensor keep, Tensor? lengths, Tensor? cu_seqlens, Tensor(a!) slot, "
        "Tensor(b!) new_lengths) -> ()");
  m.def("merge_bits(Tensor bits, Tensor slot, Tensor? sizes, Tensor? cu_in, Tensor? cu_out, Tensor(a!) out, "
        "Tensor(b!) new_sizes) -> ()");
  m.def("merge_tokens(Tensor x, Tensor slot, Tensor? sizes, Tensor? cu_in, Tensor? cu_out, Tensor(a!) out, "
        "Tensor(b!) new_sizes) -> ()");
  m.def("merge_tokens_backward(Tensor grad, Tensor slot, Tensor? sizes, Tensor new_sizes, Tensor? cu_in, "
        "Tensor? cu_out, Tensor(a!) grad_x) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("match_tokens", TORCH_BOX(&match_tokens));
  m.impl("merge_bits", TORCH_BOX(&merge_bits));
  m.impl("merge_tokens", TORCH_BOX(&merge_tokens));
  m.impl("merge_tokens_backward", TORCH_BOX(&merge_tokens_backward));
}

}  // namespace
}  // namespace btr
