// Packing and unpacking on CUDA tensors; compiled, as its neighbours `cuda_*.cpp`, where a CUDA compiler was found.

#include <torch/csrc/stable/library.h>

#include "torch/cuda_calls.h"

namespace btr {
namespace {

void pack_bits_cuda(Tensor x, Tensor out) {
  const DeviceGuard guard(x.get_device_index());
  const int64_t d = token_size("x", x), rows = rows_of(x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16, DType::boolean});
  const auto* in = read<char>("x", x, rows * d);
  auto* bits = write<uint8_t>("out", out, ScalarType::Byte, rows * bytes_for(d));
  check_launch("pack_bits", btr_cuda_pack_bits(in, int(dtype), rows, d, bits, current_stream(x)));
}

void unpack_bits_cuda(Tensor bits, Optional scale, Optional bias, Optional token_scale, Tensor out) {
  const DeviceGuard guard(bits.get_device_index());
  const int64_t d = token_size("out", out), rows = rows_of(out);
  const DType dtype = dtype_of("out", out, {DType::f32, DType::f16, DType::bf16});
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, rows * bytes_for(d));
  const auto *s = read_floats("scale", scale, d), *b = read_floats("bias", bias, d);
  const auto* ts = read_floats("token_scale", token_scale, rows);
  auto* y = write<char>("out", out, rows * d);
  check_launch("unpack_bits", btr_cuda_unpack_bits(in, rows, d, s, b, ts, y, int(dtype), current_stream(bits)));
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CUDA, m) {
  m.impl("pack_bits", TORCH_BOX(&pack_bits_cuda));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits_cuda));
}

}  // namespace
}  // namespace btr
