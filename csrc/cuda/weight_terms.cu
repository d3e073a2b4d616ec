// Copies of matrices in the form that tensor cores take: bound by memory, and small beside the multiplication.
#include "cuda/weight_terms.cuh"

#include "cuda/bits.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"

namespace btr::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    pad_rows_of_bytes(const uint8_t* __restrict__ from, int64_t rows, int64_t bytes, uint4* __restrict__ to) {
  const int64_t vectors = divide_up(bytes, 16), stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * vectors; i += stride) {
    const int64_t row = i / vectors, first = (i - row * vectors) * 16;
    const uint8_t* source = from + row * bytes + first;
    uint32_t words[4] = {};
#pragma unroll
    for (int b = 0; b < 16; ++b) {
      if (first + b < bytes) words[b / 4] |= static_cast<uint32_t>(source[b]) << (b % 4 * 8);
    }
    to[i] = uint4{words[0], words[1], words[2], words[3]};
  }
}

template <DType kType>
using storage = std::conditional_t<kType == DType::f32, uint32_t, uint16_t>;

// A thread makes 8 neighbouring numbers, 16 bytes of each term.
template <DType kType>
__global__ void __launch_bounds__(kThreads)
    split_rows(const storage<kType>* __restrict__ from, const float* __restrict__ scale, int64_t rows, int64_t d, int terms,
               uint4* __restrict__ to) {
  const int64_t vectors = divide_up(d, 8), stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * vectors; i += stride) {
    const int64_t row = i / vectors, first = (i - row * vectors) * 8;
    float values[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      values[c] = 0.0f;
      if (first + c < d) {
        values[c] = widened<kType>(from[row * d + first + c]);
        if (scale) values[c] = multiply(values[c], scale[first + c]);
      }
    }
    for (int term = 0; term < terms; ++term) {
      uint32_t words[4];
#pragma unroll
      for (int c = 0; c < 8; c += 2) words[c / 2] = next_term(values[c]) >> 16 | next_term(values[c + 1]);
      to[term * rows * vectors + i] = uint4{words[0], words[1], words[2], words[3]};
    }
  }
}

}  // namespace

int pad_rows(const void* from, int64_t rows, int64_t bytes, void* to, cudaStream_t stream) {
  const int64_t threads = rows * divide_up(bytes, 16);
  return launch(pad_rows_of_bytes, blocks_for_warps(divide_up(threads, 32)), stream, static_cast<const uint8_t*>(from), rows,
                bytes, static_cast<uint4*>(to));
}

int split_into_terms(const void* from, DType type, const float* scale, int64_t rows, int64_t d, int terms, void* to,
                     cudaStream_t stream) {
  const int64_t blocks = blocks_for_warps(divide_up(rows * divide_up(d, 8), 32));
  const auto run = [&](auto constant) {
    constexpr DType kType = decltype(constant)::value;
    return launch(split_rows<kType>, blocks, stream, static_cast<const storage<kType>*>(from), scale, rows, d, terms,
                  static_cast<uint4*>(to));
  };
  switch (type) {
    case DType::f32: return run(std::integral_constant<DType, DType::f32>());
    case DType::f16: return run(std::integral_constant<DType, DType::f16>());
    case DType::bf16: return run(std::integral_constant<DType, DType::bf16>());
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace btr::cuda
