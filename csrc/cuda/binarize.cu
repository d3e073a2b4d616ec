// Signs of a normalised matrix and the magnitudes that they leave out: see launchers.h. Bound by reading x, once for rows
// that fit a warp's registers (1024 channels); wider ones are read again, from cache, for each sum.
#include <cmath>
#include <type_traits>

#include "cuda/bits.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace btr::cuda {
namespace {

// Channels of a row that a lane holds, in vectors whose loads overlap; without vectors, one by one.
constexpr int kChannels = 32, kSingle = 8;

// 1 / 2^e for 2^e about `largest`, exactly: what x is multiplied by so that no square overflows. Infinity and NaN count as
// the largest finite number.
__device__ __forceinline__ float power_of_two_over(float largest) {
  const uint32_t exponent = float_to_bits(largest) >> 23 & 0xff;
  return bits_to_float((254 - (exponent < 253 ? exponent : 253)) << 23);
}

template <typename Combine>
__device__ __forceinline__ float over_lanes(float value, Combine combine) {
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// The bits of a vector of each lane, at `vector` of the row: whole bytes to memory. The lanes of a warp call it together;
// `ones` is 0 past the end of the row.
template <int K>
__device__ __forceinline__ void store_bits(uint32_t ones, int64_t vector, int64_t bytes, uint8_t* out) {
  const int lane = threadIdx.x % 32;
  if constexpr (K == 8) {
    if (vector < bytes) out[vector] = static_cast<uint8_t>(ones);
  } else if constexpr (K == 4) {
    ones |= __shfl_xor_sync(0xffffffffu, ones, 1) << 4;
    if (lane % 2 == 0 && vector / 2 < bytes) out[vector / 2] = static_cast<uint8_t>(ones);
  } else {
    const uint32_t word = __ballot_sync(0xffffffffu, ones);
    if (lane % 8 == 0 && vector / 8 < bytes) out[vector / 8] = static_cast<uint8_t>(word >> lane);
  }
}

// A warp does a row. kLayer: of x - mean(x). With `magnitude`: sqrt(mean of squares + eps) too.
template <DType kType, bool kVectors, bool kLayer>
__global__ void __launch_bounds__(kThreads, kType == DType::f32 ? 2 : 3)
    binarize_rows(const void* __restrict__ all, int64_t rows, int64_t d, double eps, uint8_t* __restrict__ bits,
                  float* __restrict__ magnitude) {
  using V = std::conditional_t<kVectors, uint4, std::conditional_t<kType == DType::f32, uint32_t, uint16_t>>;
  constexpr int K = kVectors ? kPerVector<kType> : 1, kHeld = kVectors ? kChannels / K : kSingle;
  const int lane = threadIdx.x % 32;
  const int64_t vectors = d / K, parts = divide_up(vectors, 32 * kHeld), bytes = divide_up(d, 8);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; row < rows; row += stride) {
    const V* x = static_cast<const V*>(all) + row * vectors;
    V held[kHeld];
    const auto load = [&](int64_t part) {
#pragma unroll
      for (int u = 0; u < kHeld; ++u) {
        const int64_t vector = (part * kHeld + u) * 32 + lane;
        held[u] = vector < vectors ? x[vector] : V{};
      }
    };
    // use(vector, its place in the row) of all that a lane has; nothing but zeros lies past the end.
    const auto each = [&](auto use) {
      for (int64_t part = 0; part < parts; ++part) {
        if (parts > 1) load(part);
#pragma unroll
        for (int u = 0; u < kHeld; ++u) use(held[u], (part * kHeld + u) * 32 + lane);
      }
    };
    if (parts == 1) load(0);

    float largest = 0.0f;
    each([&](const V& v, int64_t) {
#pragma unroll
      for (int i = 0; i < K; ++i) largest = fmaxf(largest, fabsf(element<kType>(v, i)));
    });
    const float factor = power_of_two_over(over_lanes(largest, [](float a, float b) { return fmaxf(a, b); }));
    const auto sum = [](float a, float b) { return add(a, b); };
    float mean = 0.0f;
    if constexpr (kLayer) {
      each([&](const V& v, int64_t) {
#pragma unroll
        for (int i = 0; i < K; ++i) mean = add(mean, multiply(element<kType>(v, i), factor));
      });
      mean = over_lanes(mean, sum) / static_cast<float>(d);
    }
    if (magnitude) {
      float squares = 0.0f;
      each([&](const V& v, int64_t vector) {
        if (vector >= vectors) return;
#pragma unroll
        for (int i = 0; i < K; ++i) {
          const float centred = add(multiply(element<kType>(v, i), factor), -mean);
          squares = add(squares, multiply(centred, centred));
        }
      });
      squares = over_lanes(squares, sum);
      // In float64, where the square of the factor does not overflow.
      const double scale = factor;
      if (lane == 0) magnitude[row] = static_cast<float>(sqrt(squares / static_cast<double>(d) / (scale * scale) + eps));
    }
    each([&](const V& v, int64_t vector) {
      uint32_t ones = 0;
      if (vector < vectors) {
#pragma unroll
        for (int i = 0; i < K; ++i) {
          const float value = element<kType>(v, i);
          const bool one = kLayer ? add(multiply(value, factor), -mean) >= 0.0f : value >= 0.0f;
          ones |= static_cast<uint32_t>(one) << i;
        }
      }
      store_bits<K>(ones, vector, bytes, bits + row * bytes);
    });
  }
}

template <DType kType>
int binarize(const void* x, int64_t rows, int64_t d, bool layer, double eps, uint8_t* bits, float* magnitude,
             cudaStream_t stream) {
  const bool vectors = d % kPerVector<kType> == 0 && aligned(x, 16);
  const auto kernel = vectors ? layer ? binarize_rows<kType, true, true> : binarize_rows<kType, true, false>
                      : layer ? binarize_rows<kType, false, true> : binarize_rows<kType, false, false>;
  return launch(kernel, blocks_for_warps(rows), stream, x, rows, d, eps, bits, magnitude);
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_binarize(const void* x, int dtype, int64_t rows, int64_t d, int layer, double eps, uint8_t* bits,
                                 float* magnitude, cudaStream_t stream) {
  using btr::DType;
  if (rows <= 0 || d <= 0) return cudaSuccess;
  // Without a mean to subtract, signs are those of x.
  if (!layer && !magnitude && dtype != static_cast<int>(DType::boolean)) {
    return btr_cuda_pack_bits(x, dtype, rows, d, bits, stream);
  }
  switch (static_cast<DType>(dtype)) {
    case DType::f32: return btr::cuda::binarize<DType::f32>(x, rows, d, layer, eps, bits, magnitude, stream);
    case DType::f16: return btr::cuda::binarize<DType::f16>(x, rows, d, layer, eps, bits, magnitude, stream);
    case DType::bf16: return btr::cuda::binarize<DType::bf16>(x, rows, d, layer, eps, bits, magnitude, stream);
    default: return cudaErrorInvalidValue;
  }
}
