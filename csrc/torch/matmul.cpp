// Operators of matmul/matmul.h.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

#include "core/tuning.h"
#include "matmul/matmul.h"
#include "torch/arguments.h"
#include "torch/parallel.h"

namespace btr {
namespace {

// A weight (N, d), or channel-major (d, N) as `prepare_weight` makes it; integers come with factors (blocks, N). Gated:
// N is twice the columns of out.
void unpack_matmul(Tensor bits, Tensor weight, bool channel_major, bool gated, Optional scale, Optional factors,
                   Optional bias, Optional token_scale, Tensor out) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight: expected two dimensions");
  MatmulArgs args{};
  args.channel_major = channel_major;
  const int64_t columns = weight.size(channel_major ? 1 : 0);
  STD_TORCH_CHECK(!gated || columns % 2 == 0, "weight: expected an even number of columns, half of the gate");
  args.gated = gated;
  args.n = gated ? columns / 2 : columns;
  args.d = weight.size(channel_major ? 0 : 1);
  STD_TORCH_CHECK(args.d >= 1, "weight: expected d >= 1");
  args.m = rows_of(bits);
  args.weight_type = dtype_of("weight", weight, {DType::f32, DType::f16, DType::bf16, DType::i16, DType::i8});
  args.out_type = dtype_of("out", out, {DType::f32, DType::f16, DType::bf16});
  const bool integers = args.weight_type == DType::i16 || args.weight_type == DType::i8;
  STD_TORCH_CHECK(integers == factors.has_value(), "factors: expected with a weight of integers, and only with one");
  STD_TORCH_CHECK(channel_major || !integers, "weight: expected integers channel-major");
  STD_TORCH_CHECK(!channel_major || !scale, "scale: expected to be folded into a channel-major weight");
  if (integers) args.factor_blocks = args.weight_type == DType::i8 ? 1 : groups_for(args.d);
  args.bits = read<uint8_t>("bits", bits, ScalarType::Byte, args.m * bytes_for(args.d));
  args.weight = read<char>("weight", weight, columns * args.d);
  args.scale = read_floats("scale", scale, args.d);
  args.factors = read_floats("factors", factors, args.factor_blocks * columns);
  args.bias = read_floats("bias", bias, columns);
  args.token_scale = read_floats("token_scale", token_scale, args.m);
  args.out = write<char>("out", out, args.m * args.n);
  if (args.m == 0 || args.n == 0) return;
  const MatmulPlan plan = plan_matmul(args, int(torch::stable::get_num_threads()));
  const int64_t products = args.m * columns * args.d / plan.pieces();
  parallel(plan.pieces(), grain_of(tuning().parallel_products_per_thread, products),
           [&](int64_t begin, int64_t end) { matmul_kernels().run(args, plan, begin, end); });
}

// x (..., d) times the transpose of weight (N, d), after the norm, with the gate (N twice the columns of out) and residual.
void token_linear(Tensor x, Tensor weight, Optional norm, double eps, Optional residual, bool gated, Tensor out) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight: expected two dimensions");
  LinearArgs args{};
  const int64_t columns = weight.size(0);
  STD_TORCH_CHECK(!gated || columns % 2 == 0, "weight: expected an even number of rows, half of the gate");
  args.gated = gated;
  args.n = gated ? columns / 2 : columns;
  args.d = weight.size(1);
  STD_TORCH_CHECK(args.d >= 1, "weight: expected d >= 1");
  args.m = rows_of(x);
  args.x_type = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  args.weight_type = dtype_of("weight", weight, {DType::f32, DType::f16, DType::bf16});
  args.out_type = dtype_of("out", out, {DType::f32, DType::f16, DType::bf16});
  args.x = read<char>("x", x, args.m * args.d);
  args.weight = read<char>("weight", weight, columns * args.d);
  args.norm = read_floats("norm", norm, args.d);
  args.eps = float(eps);
  args.residual = read_floats("residual", residual, args.m * args.n);
  args.out = write<char>("out", out, args.m * args.n);
  if (args.m == 0 || args.n == 0) return;
  const MatmulPlan plan = plan_linear(args, int(torch::stable::get_num_threads()));
  // Few tokens wait for the weight, more for the multiply-adds.
  const int64_t products = args.m * columns * args.d / plan.pieces();
  const int64_t bytes = columns * args.d * size_of(args.weight_type) * plan.blocks / plan.pieces();
  const Tuning& t = tuning();
  const int64_t grain = std::min(grain_of(t.parallel_products_per_thread, products),
                                 grain_of(t.parallel_bytes_per_thread, bytes));
  parallel(plan.pieces(), grain, [&](int64_t begin, int64_t end) { matmul_kernels().run_linear(args, plan, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(btr_native, m) {
  m.def("unpack_matmul(Tensor bits, Tensor weight, bool channel_major, bool gated, Tensor? scale, Tensor? factors, "
        "Tensor? bias, Tensor? token_scale, Tensor(a!) out) -> ()");
  m.def("token_linear(Tensor x, Tensor weight, Tensor? norm, float eps, Tensor? residual, bool gated, Tensor(a!) out)"
        " -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("unpack_matmul", TORCH_BOX(&unpack_matmul));
  m.impl("token_linear", TORCH_BOX(&token_linear));
}

}  // namespace
}  // namespace btr
