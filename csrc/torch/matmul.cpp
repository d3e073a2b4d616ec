// Operators of matmul/matmul.h.

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "core/tuning.h"
#include "matmul/matmul.h"
#include "torch/arguments.h"
#include "torch/parallel.h"

namespace btr {
namespace {

void unpack_matmul(Tensor bits, Tensor weight, Optional scale, Optional row_scale, Optional bias, Optional token_scale,
                   Tensor out) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight: expected (N, d)");
  MatmulArgs args{};
  args.n = weight.size(0);
  args.d = weight.size(1);
  STD_TORCH_CHECK(args.d >= 1, "weight: expected (N, d) with d >= 1");
  args.m = rows_of(bits);
  args.weight_type = dtype_of("weight", weight, {DType::f32, DType::f16, DType::bf16, DType::i8});
  args.out_type = dtype_of("out", out, {DType::f32, DType::f16, DType::bf16});
  args.bits = read<uint8_t>("bits", bits, ScalarType::Byte, args.m * bytes_for(args.d));
  args.weight = read<char>("weight", weight, args.n * args.d);
  args.scale = read_floats("scale", scale, args.d);
  args.row_scale = read_floats("row_scale", row_scale, args.n);
  args.bias = read_floats("bias", bias, args.n);
  args.token_scale = read_floats("token_scale", token_scale, args.m);
  args.out = write<char>("out", out, args.m * args.n);
  if (args.m == 0 || args.n == 0) return;
  const MatmulPlan plan = plan_matmul(args, int(torch::stable::get_num_threads()));
  const int64_t products = args.m * args.n * args.d / plan.pieces();
  parallel(plan.pieces(), grain_of(tuning().parallel_products_per_thread, products),
           [&](int64_t begin, int64_t end) { matmul_kernels().run(args, plan, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(btr_native, m) {
  m.def("unpack_matmul(Tensor bits, Tensor weight, Tensor? scale, Tensor? row_scale, Tensor? bias, "
        "Tensor? token_scale, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("unpack_matmul", TORCH_BOX(&unpack_matmul));
}

}  // namespace
}  // namespace btr
