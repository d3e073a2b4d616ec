// Expands packed signs to floats: see launchers.h. Bound by writing out, which is 16 to 32 times the size of the bits.
#include <type_traits>

#include "cuda/bits.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace btr::cuda {
namespace {

// Rows a thread works on at once: the loads of their bits and token scales overlap.
constexpr int kRows = 4;

template <DType kType>
using storage = std::conditional_t<kType == DType::f32, uint32_t, uint16_t>;

// Absent vectors become the identity; that of the sum is -0.0, since -0.0 + 0.0 would lose the sign of a product -0.0.
constexpr float kNoScale = 1.0f, kNoBias = -0.0f;

template <DType kType>
__device__ __forceinline__ float value(uint32_t bits, int i, float scale, float bias, float token_scale) {
  return add(multiply(with_sign(scale, bits, i), token_scale), bias);
}

// K consecutive floats of a per-channel vector, by 16-byte loads.
template <int K>
__device__ __forceinline__ void load_channels(const float* vector, int64_t channel, float absent, float (&values)[K]) {
#pragma unroll
  for (int i = 0; i < K; i += 4) {
    const float4 v = vector ? *reinterpret_cast<const float4*>(vector + channel + i) : float4{absent, absent, absent, absent};
    values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
  }
}

// d % 8 == 0. A thread writes vectors of K channels (16 bytes); it keeps its channels for all of its rows, so that scale
// and bias are read once into registers. Threads are numbered along a block of `rows_at_once` whole rows: neighbouring
// threads write neighbouring vectors whatever d is.
template <DType kType>
__global__ void __launch_bounds__(kThreads, 4)
    unpack_vectors(const uint8_t* __restrict__ bits, int64_t rows, int64_t d, const float* __restrict__ scale,
                   const float* __restrict__ bias, const float* __restrict__ token_scale, uint4* __restrict__ out,
                   int64_t rows_at_once) {
  constexpr int K = kPerVector<kType>;
  const int64_t row_vectors = d / K;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t first_row = thread / row_vectors, column = thread - first_row * row_vectors;
  if (first_row >= rows_at_once) return;

  float scales[K], biases[K];
  load_channels(scale, column * K, kNoScale, scales);
  load_channels(bias, column * K, kNoBias, biases);
  const int shift = K == 4 ? column % 2 * 4 : 0;  // a float32 vector takes half a byte of bits
  const uint8_t* byte = bits + column * K / 8;

  for (int64_t row = first_row; row < rows; row += kRows * rows_at_once) {
    uint32_t loaded[kRows];
    float tokens[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int64_t r = row + u * rows_at_once;
      loaded[u] = r < rows ? byte[r * (d / 8)] : 0;
      tokens[u] = token_scale && r < rows ? token_scale[r] : kNoScale;
    }
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int64_t r = row + u * rows_at_once;
      const uint32_t field = loaded[u] >> shift;
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kType == DType::f32) {
          words[i] = float_to_bits(value<kType>(field, i, scales[i], biases[i], tokens[u]));
        } else {
          words[i] = word_of<kType>(value<kType>(field, 2 * i, scales[2 * i], biases[2 * i], tokens[u]),
                                    value<kType>(field, 2 * i + 1, scales[2 * i + 1], biases[2 * i + 1], tokens[u]));
        }
      }
      if (r < rows) out[r * row_vectors + column] = uint4{words[0], words[1], words[2], words[3]};
    }
  }
}

// Any d, any alignment: a warp takes 256 channels of a row, a lane one of each 32. Coalesced scalar stores.
template <DType kType>
__global__ void __launch_bounds__(kThreads)
    unpack_rows(const uint8_t* __restrict__ bits, int64_t rows, int64_t d, const float* __restrict__ scale,
                const float* __restrict__ bias, const float* __restrict__ token_scale, storage<kType>* __restrict__ out) {
  const int lane = threadIdx.x % 32;
  const int64_t bytes = divide_up(d, 8), chunks = divide_up(d, 256);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; unit < rows * chunks; unit += stride) {
    const int64_t row = unit / chunks, first = (unit - row * chunks) * 256;
    const float token = token_scale ? token_scale[row] : kNoScale;
#pragma unroll 2
    for (int64_t c = first + lane; c < d && c < first + 256; c += 32) {
      const float result = value<kType>(bits[row * bytes + c / 8] >> (c % 8), 0, scale ? scale[c] : kNoScale,
                                        bias ? bias[c] : kNoBias, token);
      if constexpr (kType == DType::f32) {
        out[row * d + c] = float_to_bits(result);
      } else {
        out[row * d + c] = static_cast<uint16_t>(word_of<kType>(result, 0.0f));
      }
    }
  }
}

template <DType kType>
int unpack(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias, const float* token_scale,
           void* out, cudaStream_t stream) {
  if (d % 8 == 0 && aligned(out, 16) && aligned(scale, 16) && aligned(bias, 16)) {
    const int64_t row_vectors = d / kPerVector<kType>;
    const int64_t resident = multiprocessors() * 2048;
    const int64_t fitting = resident < row_vectors ? 1 : resident / row_vectors;
    const int64_t rows_at_once = fitting < rows ? fitting : rows;
    return launch(unpack_vectors<kType>, divide_up(rows_at_once * row_vectors, kThreads), stream, bits, rows, d, scale,
                  bias, token_scale, static_cast<uint4*>(out), rows_at_once);
  }
  return launch(unpack_rows<kType>, blocks_for_warps(rows * divide_up(d, 256)), stream, bits, rows, d, scale, bias,
                token_scale, static_cast<storage<kType>*>(out));
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_unpack_bits(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
                                    const float* token_scale, void* out, int dtype, cudaStream_t stream) {
  using btr::DType;
  if (rows <= 0 || d <= 0) return cudaSuccess;
  switch (static_cast<DType>(dtype)) {
    case DType::f32: return btr::cuda::unpack<DType::f32>(bits, rows, d, scale, bias, token_scale, out, stream);
    case DType::f16: return btr::cuda::unpack<DType::f16>(bits, rows, d, scale, bias, token_scale, out, stream);
    case DType::bf16: return btr::cuda::unpack<DType::bf16>(bits, rows, d, scale, bias, token_scale, out, stream);
    default: return cudaErrorInvalidValue;
  }
}
