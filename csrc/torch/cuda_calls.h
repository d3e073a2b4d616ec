// What calls of CUDA launchers (cuda/launchers.h) share.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "cuda/launchers.h"
#include "torch/arguments.h"

// Weak, since the CPU build of torch lacks it and this library must load there too.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

namespace btr {

using torch::stable::accelerator::DeviceGuard;

// The current stream of the tensor's device, where torch is built with CUDA.
inline cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* kernel, int error) {
  STD_TORCH_CHECK(error == 0, kernel, ": the launch failed with CUDA error ", error);
}

// Integers of either size, as offsets and lengths come.
inline BtrIntegers read_integers(const char* name, const Tensor& t, int64_t numel) {
  const bool wide = t.scalar_type() == ScalarType::Long;
  if (!wide) check_type(name, t, ScalarType::Int);
  return {read<char>(name, t, numel), wide};
}

inline BtrIntegers read_integers(const char* name, const Optional& t, int64_t numel) {
  return t ? read_integers(name, *t, numel) : BtrIntegers{nullptr, 0};
}

}  // namespace btr
