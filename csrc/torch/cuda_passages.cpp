// Hamming distances, matching and merging on CUDA tensors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "torch/cuda_calls.h"
#include "torch/hamming_arguments.h"

namespace btr {
namespace {

void hamming_distance_cuda(Tensor a, Tensor b, Tensor out) {
  const DeviceGuard guard(a.get_device_index());
  const DistanceArguments args(a, b, out);
  check_launch("hamming_distance", btr_cuda_hamming_distance(args.a, args.b, args.batch, args.m, args.n, args.w,
                                                             args.distances, current_stream(a)));
}

// Distances that hamming_topk holds at a time.
constexpr int64_t kHeldDistances = int64_t(1) << 26;

void hamming_topk_cuda(Tensor a, Tensor b, Tensor distances, Tensor indices) {
  const DeviceGuard guard(a.get_device_index());
  const NearestArguments args(a, b, distances, indices);
  const int64_t rows = std::clamp<int64_t>(kHeldDistances / args.n, 1, std::max<int64_t>(args.m, 1));
  const Tensor scratch = torch::stable::new_empty(a, {rows, args.n}, ScalarType::Int);
  auto* memory = static_cast<int32_t*>(scratch.mutable_data_ptr());
  check_launch("hamming_topk", btr_cuda_hamming_topk(args.a, args.b, args.m, args.n, args.w, args.k, memory, rows,
                                                     args.distances, args.indices, current_stream(a)));
}

// The number of passages: of packed ones those between offsets, else the first size.
int64_t passages(const char* name, const Tensor& tokens, const Optional& cu_seqlens) {
  if (cu_seqlens) return cu_seqlens->numel() > 0 ? cu_seqlens->numel() - 1 : 0;
  STD_TORCH_CHECK(tokens.dim() >= 2, name, ": expected (B, n, ...)");
  return tokens.size(0);
}

void match_tokens_cuda(Tensor bits, Tensor keep, Optional lengths, Optional cu_seqlens, Tensor slot, Tensor new_lengths) {
  const DeviceGuard guard(bits.get_device_index());
  const int64_t w = token_size("bits", bits), tokens = rows_of(bits), batch = passages("bits", bits, cu_seqlens);
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, tokens * w);
  const BtrIntegers offsets = read_integers("cu_seqlens", cu_seqlens, batch + 1);
  const BtrIntegers given = read_integers("lengths", lengths, batch), wanted = read_integers("keep", keep, batch);
  auto* slots = write<int32_t>("slot", slot, ScalarType::Int, tokens);
  auto* left = write<int32_t>("new_lengths", new_lengths, ScalarType::Int, batch);
  const int64_t bytes = btr_cuda_match_tokens_scratch(tokens, w, batch);
  const Tensor scratch = torch::stable::new_empty(bits, {bytes}, ScalarType::Byte);
  check_launch("match_tokens", btr_cuda_match_tokens(in, tokens, w, batch, offsets, given, wanted, slots, left,
                                                     scratch.mutable_data_ptr(), current_stream(bits)));
}

// The tokens and result rows of a merge.
struct Merge {
  int64_t batch, tokens, rows;
  const int32_t *slots, *sizes;
  BtrIntegers from, to;
  int32_t* new_sizes;

  Merge(const Tensor& all_tokens, const Tensor& all_rows, const Tensor& slot, const Optional& size, const Optional& cu_in,
        const Optional& cu_out, const Tensor& all_sizes)
      : batch(passages("tokens", all_tokens, cu_in)), tokens(rows_of(all_tokens)),
        slots(read<int32_t>("slot", slot, ScalarType::Int, tokens)),
        sizes(size ? read<int32_t>("sizes", *size, ScalarType::Int, tokens) : nullptr),
        from(read_integers("cu_in", cu_in, batch + 1)), to(read_integers("cu_out", cu_out, batch + 1)),
        new_sizes(write<int32_t>("new_sizes", all_sizes, ScalarType::Int, rows_of(all_rows))) {
    STD_TORCH_CHECK(cu_in.has_value() == cu_out.has_value(), "cu_in, cu_out: expected both or neither");
    STD_TORCH_CHECK(cu_in || passages("rows", all_rows, cu_in) == batch, "rows: expected ", batch, " passages");
    rows = cu_in ? rows_of(all_rows) : all_rows.size(1);
  }
  int64_t all_rows() const { return from.data ? rows : batch * rows; }
};

void merge_bits_cuda(Tensor bits, Tensor slot, Optional sizes, Optional cu_in, Optional cu_out, Tensor out,
                     Tensor new_sizes) {
  const DeviceGuard guard(bits.get_device_index());
  const int64_t w = token_size("bits", bits);
  const Merge merge(bits, out, slot, sizes, cu_in, cu_out, new_sizes);
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, merge.tokens * w);
  auto* merged = write<uint8_t>("out", out, ScalarType::Byte, merge.all_rows() * w);
  check_launch("merge_bits", btr_cuda_merge_bits(in, merge.tokens, w, merge.batch, merge.rows, merge.slots, merge.sizes,
                                                 merge.from, merge.to, merged, merge.new_sizes, current_stream(bits)));
}

void merge_tokens_cuda(Tensor x, Tensor slot, Optional sizes, Optional cu_in, Optional cu_out, Tensor out,
                       Tensor new_sizes) {
  const DeviceGuard guard(x.get_device_index());
  const int64_t d = token_size("x", x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  const Merge merge(x, out, slot, sizes, cu_in, cu_out, new_sizes);
  const auto* in = read<char>("x", x, merge.tokens * d);
  auto* merged = write<char>("out", out, x.scalar_type(), merge.all_rows() * d);
  check_launch("merge_tokens",
               btr_cuda_merge_tokens(in, int(dtype), merge.tokens, d, merge.batch, merge.rows, merge.slots, merge.sizes,
                                     merge.from, merge.to, merged, merge.new_sizes, current_stream(x)));
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CUDA, m) {
  m.impl("hamming_distance", TORCH_BOX(&hamming_distance_cuda));
  m.impl("hamming_topk", TORCH_BOX(&hamming_topk_cuda));
  m.impl("match_tokens", TORCH_BOX(&match_tokens_cuda));
  m.impl("merge_bits", TORCH_BOX(&merge_bits_cuda));
  m.impl("merge_tokens", TORCH_BOX(&merge_tokens_cuda));
}

}  // namespace
}  // namespace btr
