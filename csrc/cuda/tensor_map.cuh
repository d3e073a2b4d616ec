// What the tensor memory accelerator of Hopper has to know of a matrix: made on the host, an argument of the kernel.
#pragma once

#include <cuda.h>  // types only: the function comes from the driver that is there when a kernel is launched
#include <cuda_runtime.h>

#include <cstdint>

namespace btr::cuda {

using TensorMap = CUtensorMap;

// Bytes of a row in shared memory. Rows follow each other; the 16-byte vectors of row r are permuted by an exclusive or of
// their number with r % 8, so that no access of the tensor cores meets a bank twice. Needs memory aligned to 8 rows.
constexpr int kBoxBytes = 128;

// `planes` matrices of `rows` x `columns` elements of 1 or 2 bytes, copied in boxes of box_rows x kBoxBytes; what is outside
// is zero. Rows start at multiples of 16 bytes. Returns a cudaError_t.
inline int make_tensor_map(TensorMap& map, const void* matrix, int element_bytes, int64_t columns, int64_t rows,
                           int64_t planes, int64_t row_bytes, int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (!encode) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(planes)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_bytes), static_cast<cuuint64_t>(row_bytes * rows)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(kBoxBytes / element_bytes), static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[] = {1, 1, 1};
  const auto type = element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  const CUresult result = encode(&map, type, 3, const_cast<void*>(matrix), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace btr::cuda
