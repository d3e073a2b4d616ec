// Packing, unpacking and masked bits on CUDA tensors; compiled, as its neighbours `cuda_*.cpp`, where a CUDA compiler was found.

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

void restore_bits_cuda(Tensor bits, Tensor scale, Tensor copy, Tensor states) {
  const DeviceGuard guard(scale.get_device_index());
  const int64_t d = token_size("states", states), rows = rows_of(states), w = bytes_for(d);
  const DType dtype = dtype_of("states", states, {DType::f32, DType::f16, DType::bf16});
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, rows * w);
  const auto* s = read<float>("scale", scale, ScalarType::Float, d);
  auto* copied = write<uint8_t>("copy", copy, ScalarType::Byte, rows * w);
  auto* y = write<char>("states", states, rows * d);
  check_launch("restore_bits", btr_cuda_restore_bits(in, rows, d, s, copied, y, int(dtype), current_stream(scale)));
}

void binarize_cuda(Tensor x, bool layer, double eps, Tensor bits, Optional magnitude) {
  const DeviceGuard guard(x.get_device_index());
  const int64_t d = token_size("x", x), rows = rows_of(x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  const auto* in = read<char>("x", x, rows * d);
  auto* out = write<uint8_t>("bits", bits, ScalarType::Byte, rows * bytes_for(d));
  auto* size = magnitude ? write<float>("magnitude", *magnitude, ScalarType::Float, rows) : nullptr;
  check_launch("binarize", btr_cuda_binarize(in, int(dtype), rows, d, layer, eps, out, size, current_stream(x)));
}

void expand_bits_cuda(Tensor codes, Tensor ids, Tensor mask, Tensor fill, Tensor out) {
  const DeviceGuard guard(codes.get_device_index());
  const int64_t c = token_size("codes", codes), tokens = rows_of(codes), w = token_size("mask", mask);
  const int64_t table_rows = rows_of(mask);
  const auto* in = read<uint8_t>("codes", codes, ScalarType::Byte, tokens * c);
  const BtrIntegers chosen = read_integers("ids", ids, tokens);
  const auto* stored = read<uint8_t>("mask", mask, ScalarType::Byte, table_rows * w);
  const auto* others = read<uint8_t>("fill", fill, ScalarType::Byte, table_rows * w);
  auto* bits = write<uint8_t>("out", out, ScalarType::Byte, tokens * w);
  check_launch("expand_bits",
               btr_cuda_expand_bits(in, chosen, stored, others, tokens, table_rows, c, w, bits, current_stream(codes)));
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CUDA, m) {
  m.impl("pack_bits", TORCH_BOX(&pack_bits_cuda));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits_cuda));
  m.impl("restore_bits", TORCH_BOX(&restore_bits_cuda));
  m.impl("binarize", TORCH_BOX(&binarize_cuda));
  m.impl("expand_bits", TORCH_BOX(&expand_bits_cuda));
}

}  // namespace
}  // namespace btr
