// Element types of the tensors that kernels read and write. Shared with CUDA: no standard library beyond <cstdint>.
#pragma once

#include <cstdint>

namespace btr {

enum class DType : int32_t { f32 = 0, f16 = 1, bf16 = 2, boolean = 3, i8 = 4, i16 = 5, e4m3 = 6 };

// Storage-only 16-bit floats and one-byte booleans: distinct types, so that templates can tell them apart.
struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};
struct bool_t {
  uint8_t value;
};

constexpr int64_t bytes_for(int64_t channels) { return (channels + 7) / 8; }

constexpr int64_t size_of(DType type) {
  return type == DType::f32 ? 4 : type == DType::f16 || type == DType::bf16 || type == DType::i16 ? 2 : 1;
}

}  // namespace btr
