// How operators read their arguments: pointers that are handed out only after dtype, layout and size were checked.
//
// The files of this directory register the kernels as `torch.ops.btr_native.*` through torch's stable ABI, so that one
// binary loads in torch 2.11 and newer. These are the inner operators: `btr_kernels/ops` checks arguments for users and
// allocates results; here it is only made sure that no call can touch memory it should not, or never end.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>

#include "core/types.h"

namespace btr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline int64_t last_size(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() >= 1, "expected at least one dimension");
  return t.size(t.dim() - 1);
}

// The last size of a tensor of tokens: at least one channel or byte.
inline int64_t token_size(const char* name, const Tensor& t) {
  const int64_t size = last_size(t);
  STD_TORCH_CHECK(size >= 1, name, ": expected a last dimension of at least 1");
  return size;
}

// Product of all sizes but the last.
inline int64_t rows_of(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < t.dim(); ++i) rows *= t.size(i);
  return rows;
}

inline DType dtype_of(const char* name, const Tensor& t, std::initializer_list<DType> allowed) {
  const auto named = [](ScalarType type) -> std::optional<DType> {
    switch (type) {
      case ScalarType::Float: return DType::f32;
      case ScalarType::Half: return DType::f16;
      case ScalarType::BFloat16: return DType::bf16;
      case ScalarType::Bool: return DType::boolean;
      case ScalarType::Char: return DType::i8;
      case ScalarType::Short: return DType::i16;
      case ScalarType::Float8_e4m3fn: return DType::e4m3;
      default: return std::nullopt;
    }
  }(t.scalar_type());
  for (DType type : allowed)
    if (named == type) return type;
  STD_TORCH_CHECK(false, name, ": unsupported dtype");
}

inline void check_layout(const char* name, const Tensor& t, int64_t numel) {
  STD_TORCH_CHECK(t.numel() == numel, name, ": expected ", numel, " elements, got ", t.numel());
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor");
}

inline void check_type(const char* name, const Tensor& t, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": unexpected dtype");
}

template <typename T>
const T* read(const char* name, const Tensor& t, int64_t numel) {
  check_layout(name, t, numel);
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
const T* read(const char* name, const Tensor& t, ScalarType type, int64_t numel) {
  check_type(name, t, type);
  return read<T>(name, t, numel);
}

inline const float* read_floats(const char* name, const Optional& t, int64_t numel) {
  return t ? read<float>(name, *t, ScalarType::Float, numel) : nullptr;
}

template <typename T>
T* write(const char* name, const Tensor& t, int64_t numel) {
  check_layout(name, t, numel);
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename T>
T* write(const char* name, const Tensor& t, ScalarType type, int64_t numel) {
  check_type(name, t, type);
  return write<T>(name, t, numel);
}

}  // namespace btr
