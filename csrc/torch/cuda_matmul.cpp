// Projections on CUDA tensors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "torch/cuda_calls.h"

namespace btr {
namespace {

// The schema is that of the CPU (matmul.cpp); of its weights those with an output's channels next to each other.
void unpack_matmul_cuda(Tensor bits, Tensor weight, bool channel_major, bool gated, Optional scale, Optional factors,
                        Optional bias, Optional token_scale, Tensor out) {
  const DeviceGuard guard(bits.get_device_index());
  STD_TORCH_CHECK(weight.dim() == 2 && !channel_major, "weight: expected (N, d)");
  const int64_t columns = weight.size(0), d = weight.size(1), m = rows_of(bits);
  STD_TORCH_CHECK(!gated || columns % 2 == 0, "weight: expected an even number of columns, half of the gate");
  STD_TORCH_CHECK(d >= 1, "weight: expected d >= 1");
  STD_TORCH_CHECK(columns < (int64_t{1} << 30) && d < (int64_t{1} << 30), "weight: expected sizes below 2^30");
  const DType stored = dtype_of("weight", weight, {DType::f32, DType::f16, DType::bf16, DType::i8, DType::e4m3});
  STD_TORCH_CHECK(!scale || size_of(stored) > 1, "scale: expected to be folded into a weight of 8 bits");
  BtrProjection p{};
  p.m = m, p.n = gated ? columns / 2 : columns, p.d = d, p.gated = gated;
  p.weight_dtype = int(stored), p.out_dtype = int(dtype_of("out", out, {DType::f32, DType::f16, DType::bf16}));
  p.bits = read<uint8_t>("bits", bits, ScalarType::Byte, m * bytes_for(d));
  p.weight = read<char>("weight", weight, columns * d);
  p.scale = read_floats("scale", scale, d);
  p.factors = read_floats("factors", factors, columns);
  p.bias = read_floats("bias", bias, columns);
  p.token_scale = read_floats("token_scale", token_scale, m);
  p.out = write<char>("out", out, m * p.n);
  const int64_t bytes = btr_cuda_unpack_matmul_scratch(&p);
  std::optional<Tensor> scratch;
  if (bytes > 0) scratch = torch::stable::new_empty(bits, {bytes}, ScalarType::Byte);
  void* memory = scratch ? scratch->mutable_data_ptr() : nullptr;
  check_launch("unpack_matmul", btr_cuda_unpack_matmul(&p, memory, current_stream(bits)));
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CUDA, m) { m.impl("unpack_matmul", TORCH_BOX(&unpack_matmul_cuda)); }

}  // namespace
}  // namespace btr
