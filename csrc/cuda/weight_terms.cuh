// Matrices as the kernels of unpack_matmul read them, where the caller's are not: in scratch memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/projection.cuh"

namespace btr::cuda {

// A row that starts at a multiple of 16 bytes.
constexpr int64_t padded_row(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// rows of `bytes` bytes -> rows of padded_row(bytes), the rest of which is zero.
int pad_rows(const void* from, int64_t rows, int64_t bytes, void* to, cudaStream_t stream);

// rows of d floats, each times the scale of its channel (if not null) -> `terms` matrices of rows of padded_row(2 d) bytes,
// bfloat16, whose sum it is: exactly for three, up to 2^-16 of it for two.
int split_into_terms(const void* from, DType type, const float* scale, int64_t rows, int64_t d, int terms, void* to,
                     cudaStream_t stream);

}  // namespace btr::cuda
