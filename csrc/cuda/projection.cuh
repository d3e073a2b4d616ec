// What the kernels of unpack_matmul share: their arguments, where tiles lie, and what becomes of the sums of a tile.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/types.h"
#include "cuda/bits.cuh"

namespace btr::cuda {

// out (m, n) = token_scale * (factors * (+-1 @ weight.T)) + bias; gated, for 2 n columns of the weight of which the first
// n are the gate, gelu(first) * second. The weight is a sum of `terms` matrices (columns, d) whose products with signs
// tensor cores find exactly: itself, or bfloat16 parts of float32 numbers.
struct Projection {
  const uint8_t* bits;  // rows of row_bytes, a multiple of 8, at a multiple of 8
  const void* weight;   // terms x columns rows of weight_row_bytes, a multiple of 16, at a multiple of 16
  const float *factors, *bias, *token_scale;  // absent: null
  void* out;
  int64_t m, row_bytes, weight_row_bytes;
  int n, columns, d, terms;
  bool gated;
  DType out_type;
};

template <DType kType>
using Sum = std::conditional_t<kType == DType::i8, int32_t, float>;

// ---- Tiles ----

// The row of the weight that is column c of a tile, of which every kGroup columns belong to one warp: gated, the first half
// of them are the gate and the second half the same columns of the other factor, so that one thread has both. `first` is
// the first column of the result that the tile makes.
template <int kGroup>
__host__ __device__ __forceinline__ int weight_row(const Projection& p, int first, int c) {
  if (!p.gated) return first + c;
  const int group = c / kGroup, in_group = c % kGroup, half = kGroup / 2;
  return first + group * half + in_group % half + (in_group < half ? 0 : p.n);
}

// Bytes of each row of the weight that a step of the multiplication takes, and how many channels they are.
constexpr int kStepBytes = 128;
template <DType kType>
constexpr int kStepChannels = static_cast<int>(kStepBytes / size_of(kType));

// Steps of one term. Terms come in sweeps, the least first: the sum is then small in all but the last, and tensor cores,
// which cut off what they add to a large sum, cut off less.
template <DType kType>
__host__ __device__ __forceinline__ int steps_of(const Projection& p) {
  return static_cast<int>(divide_up(p.d, kStepChannels<kType>));
}

// ---- Results ----

__host__ __device__ __forceinline__ float exponential(float x) {
#ifdef __CUDA_ARCH__
  return __expf(x);
#else
  return expf(x);
#endif
}
__host__ __device__ __forceinline__ float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

// GELU in its approximation by tanh: x (1 + tanh u) / 2 = x / (1 + exp(-2 u)), 0 where tanh rounds to -1 in float32.
__host__ __device__ __forceinline__ float gelu(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x * (u < -9.01f ? 0.0f : quotient(1.0f, 1.0f + exponential(-2.0f * u)));
}

// Absent vectors become the identity; that of the sum is -0.0, since -0.0 + 0.0 would lose the sign of a product -0.0.
struct Column {
  float factor = 1.0f, bias = -0.0f;
};

__device__ __forceinline__ Column column_of(const Projection& p, int row_of_weight) {
  Column column;
  if (row_of_weight < p.columns) {
    if (p.factors) column.factor = p.factors[row_of_weight];
    if (p.bias) column.bias = p.bias[row_of_weight];
  }
  return column;
}

__device__ __forceinline__ float finished(float sum, const Column& column, float token) {
  return sum * column.factor * token + column.bias;
}

// 8 neighbouring results, as many as exist. `vectors`: all do, and the first is at a multiple of 16 bytes.
template <DType kOut>
__device__ __forceinline__ void store_as(const Projection& p, int64_t row, int column, const float (&y)[8], bool vectors) {
  const int64_t at = row * p.n + column;
  if constexpr (kOut == DType::f32) {
    auto* out = static_cast<float*>(p.out) + at;
    if (vectors) {
      reinterpret_cast<float4*>(out)[0] = float4{y[0], y[1], y[2], y[3]};
      reinterpret_cast<float4*>(out)[1] = float4{y[4], y[5], y[6], y[7]};
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (column + i < p.n) out[i] = y[i];
      }
    }
  } else {
    auto* out = static_cast<uint16_t*>(p.out) + at;
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = word_of<kOut>(y[2 * i], y[2 * i + 1]);
    if (vectors) {
      *reinterpret_cast<uint4*>(out) = uint4{words[0], words[1], words[2], words[3]};
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (column + i < p.n) out[i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
      }
    }
  }
}

// Words from one row of staged sums to the next.
template <int kColumns>
constexpr int kStagedRow = kColumns + 4;

// The sums of a warp, 16 rows, to shared memory of its own. Sums 4 i to 4 i + 3 of a lane are columns 8 i + 2 t and the
// next of rows lane / 4 (first two) and lane / 4 + 8.
template <typename T, int kSums>
__device__ __forceinline__ void stage_sums(T* staged, const T (&sums)[kSums], int lane) {
  struct alignas(8) Pair {
    T first, second;
  };
  T* at = staged + lane / 4 * kStagedRow<2 * kSums> + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kSums / 4; ++i) {
    *reinterpret_cast<Pair*>(at + 8 * i) = Pair{sums[4 * i], sums[4 * i + 1]};
    *reinterpret_cast<Pair*>(at + 8 * i + 8 * kStagedRow<2 * kSums>) = Pair{sums[4 * i + 2], sums[4 * i + 3]};
  }
}

// 8 neighbouring ones, by two vectors. `second_first`: so that of 8 lanes that read together and have 32 bytes each of one
// row, no two meet at a bank.
template <typename T>
__device__ __forceinline__ void staged_floats(const T* staged, bool second_first, float (&y)[8]) {
  struct alignas(16) Four {
    T values[4];
  };
  const Four one = *reinterpret_cast<const Four*>(staged + (second_first ? 4 : 0));
  const Four other = *reinterpret_cast<const Four*>(staged + (second_first ? 0 : 4));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    y[i] = static_cast<float>(second_first ? other.values[i] : one.values[i]);
    y[i + 4] = static_cast<float>(second_first ? one.values[i] : other.values[i]);
  }
}

// Staged sums of 16 rows, the first of which is `first_row`, to the result from `column` on.
template <bool kGated, int kColumns, typename T>
__device__ __forceinline__ void finish_staged(const Projection& p, const T* staged, int64_t first_row, int column, int lane) {
  constexpr int kMade = kGated ? kColumns / 2 : kColumns, kLanes = kMade / 8;  // lanes that share a row
  const int at = lane % kLanes * 8, c = column + at;
  if (c >= p.n) return;
  const bool vectors = p.n % 8 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  const bool second_first = kLanes >= 8 && lane & 4;  // with fewer, rows are 4 banks apart
  Column of[8], other[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    of[i] = column_of(p, c + i);
    if (kGated) other[i] = column_of(p, c + i + p.n);
  }
#pragma unroll 2
  for (int r = lane / kLanes; r < 16; r += 32 / kLanes) {
    const int64_t row = first_row + r;
    if (row >= p.m) return;
    const float token = p.token_scale ? p.token_scale[row] : 1.0f;
    float y[8];
    staged_floats(staged + r * kStagedRow<kColumns> + at, second_first, y);
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] = finished(y[i], of[i], token);
    if constexpr (kGated) {
      float linear[8];
      staged_floats(staged + r * kStagedRow<kColumns> + kMade + at, second_first, linear);
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = gelu(y[i]) * finished(linear[i], other[i], token);
    }
    if (p.out_type == DType::bf16) {
      store_as<DType::bf16>(p, row, c, y, vectors);
    } else if (p.out_type == DType::f16) {
      store_as<DType::f16>(p, row, c, y, vectors);
    } else {
      store_as<DType::f32>(p, row, c, y, vectors);
    }
  }
}

// The sums of a warp, kSets times 16 rows, of which `rows` are the first ones, to the result from `column` on, through
// 16 kStagedRow words of shared memory.
template <typename T, int kSets, int kSums>
__device__ __forceinline__ void finish(const Projection& p, T* staged, const T (&sums)[kSets][kSums],
                                       const int64_t (&rows)[kSets], int column, int lane) {
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    stage_sums(staged, sums[set], lane);
    __syncwarp();
    if (p.gated) {
      finish_staged<true, 2 * kSums>(p, staged, rows[set], column, lane);
    } else {
      finish_staged<false, 2 * kSums>(p, staged, rows[set], column, lane);
    }
    __syncwarp();
  }
}

}  // namespace btr::cuda
