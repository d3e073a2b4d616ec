// The operators that have CUDA kernels (cuda/launchers.h); compiled where a CUDA compiler was found.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/launchers.h"
#include "torch/arguments.h"

// Weak, since the CPU build of torch lacks it and this library must load there too.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

namespace btr {
namespace {

// The current stream of the current device, where torch is built with CUDA.
cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch(const char* kernel, int error) {
  STD_TORCH_CHECK(error == 0, kernel, ": the launch failed with CUDA error ", error);
}

void pack_bits_cuda(Tensor x, Tensor out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t d = token_size("x", x), rows = rows_of(x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16, DType::boolean});
  const auto* in = read<char>("x", x, rows * d);
  auto* bits = write<uint8_t>("out", out, ScalarType::Byte, rows * bytes_for(d));
  check_launch("pack_bits", btr_cuda_pack_bits(in, int(dtype), rows, d, bits, current_stream(x)));
}

void unpack_bits_cuda(Tensor bits, Optional scale, Optional bias, Optional token_scale, Tensor out) {
  const torch::stable::accelerator::DeviceGuard guard(bits.get_device_index());
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
