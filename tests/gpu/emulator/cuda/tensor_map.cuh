// csrc/cuda/tensor_map.cuh for the CPU: what a copied box is made of, by the documentation of tensor maps.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace btr::cuda {

struct TensorMap {
  const char* matrix;
  int64_t element_bytes, sizes[3], strides[3];
  int box_rows;
};

constexpr int kBoxBytes = 128;

inline int make_tensor_map(TensorMap& map, const void* matrix, int element_bytes, int64_t columns, int64_t rows,
                           int64_t planes, int64_t row_bytes, int box_rows) {
  const bool valid = reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && row_bytes % 16 == 0 && row_bytes < int64_t{1} << 40 &&
                     columns > 0 && rows > 0 && planes > 0 && columns <= int64_t{1} << 32 && rows <= int64_t{1} << 32 &&
                     box_rows > 0 && box_rows <= 256 && columns * element_bytes <= row_bytes;
  if (!valid) return cudaErrorInvalidValue;
  map = {static_cast<const char*>(matrix),         element_bytes, {columns, rows, planes},
         {element_bytes, row_bytes, row_bytes * rows}, box_rows};
  return cudaSuccess;
}

// The box whose first element is at (x, y, z), to shared memory: zeros outside, 16-byte vectors of row r exchanged by r % 8
// (the swizzle of 128 bytes). `address` is that of `to` in shared memory.
inline void write_box(const TensorMap& map, char* to, uint32_t address, int64_t x, int64_t y, int64_t z) {
  const int64_t width = kBoxBytes / map.element_bytes;
  for (int64_t r = 0; r < map.box_rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      const int64_t at = r * kBoxBytes + c * map.element_bytes;
      // The exclusive or is of bits of the address: bits 4 to 6 with bits 7 to 9.
      const int64_t place = (address + at) ^ ((address + at) >> 7 & 7) << 4;
      char* element = to + (place - address);
      const bool inside = x + c >= 0 && x + c < map.sizes[0] && y + r >= 0 && y + r < map.sizes[1] && z >= 0 && z < map.sizes[2];
      if (inside) {
        std::memcpy(element, map.matrix + (x + c) * map.strides[0] + (y + r) * map.strides[1] + z * map.strides[2],
                    map.element_bytes);
      } else {
        std::memset(element, 0, map.element_bytes);
      }
    }
  }
}

}  // namespace btr::cuda
