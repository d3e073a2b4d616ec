// Operators of attention/attention.h.

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "attention/attention.h"
#include "core/scratch.h"
#include "core/tuning.h"
#include "torch/arguments.h"
#include "torch/parallel.h"

namespace btr {
namespace {

// query (B, n, inner), keys and values (B, S, inner), bias (B, heads, n, S): float32, of any strides, 0 too, but in S.
void token_attention(Tensor query, Tensor keys, Tensor values, Optional bias, int64_t head_size, Tensor out) {
  STD_TORCH_CHECK(query.dim() == 3 && keys.dim() == 3, "query, keys: expected three dimensions");
  const int64_t inner = token_size("query", query);
  STD_TORCH_CHECK(head_size >= 1 && inner % head_size == 0, "head_size: expected a divisor of ", inner);
  AttentionArgs args{};
  args.batch = query.size(0), args.tokens = query.size(1), args.count = keys.size(1);
  args.heads = inner / head_size, args.head_size = head_size;
  args.type = dtype_of("query", query, {DType::f32, DType::f16, DType::bf16});
  const int64_t rows = args.batch * args.tokens;
  args.query = read<char>("query", query, rows * inner);
  args.keys = read<char>("keys", keys, query.scalar_type(), args.batch * args.count * inner);
  args.values = read<char>("values", values, query.scalar_type(), args.batch * args.count * inner);
  args.out = write<char>("out", out, query.scalar_type(), rows * inner);
  if (rows == 0) return;
  if (bias) {
    check_type("bias", *bias, ScalarType::Float);
    STD_TORCH_CHECK(bias->dim() == 4 && bias->size(0) == args.batch && bias->size(1) == args.heads &&
                        bias->size(2) == args.tokens && bias->size(3) == args.count,
                    "bias: expected (B, heads, n, S)");
    STD_TORCH_CHECK(bias->stride(3) == 1 || args.count <= 1, "bias: expected keys next to each other");
    args.bias = static_cast<const float*>(bias->const_data_ptr());
    args.bias_of_batch = bias->stride(0), args.bias_of_head = bias->stride(1), args.bias_of_token = bias->stride(2);
  }
  const int64_t parts = attention_parts(args);
  const int64_t bytes = 2 * args.count * inner * size_of(args.type) / parts;
  Scratch scratch;
  float* partial = scratch.get<float>(rows * parts * attention_room(args));
  parallel(rows * parts, grain_of(tuning().parallel_bytes_per_thread, bytes),
           [&](int64_t begin, int64_t end) { attention_kernels().run(args, parts, begin, end, partial); });
  attention_kernels().combine(args, parts, 0, rows, partial);
}

STABLE_TORCH_LIBRARY_FRAGMENT(btr_native, m) {
  m.def("token_attention(Tensor query, Tensor keys, Tensor values, Tensor? bias, int head_size, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("token_attention", TORCH_BOX(&token_attention));
}

}  // namespace
}  // namespace btr
