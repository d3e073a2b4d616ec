// Weighted means of the tokens of each row: see launchers.h. Bound by reading x, each token once; sums are made in the
// order of the tokens.
#include <type_traits>

#include "cuda/bits.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/passages.cuh"

namespace btr::cuda {
namespace {

// Vectors of a token that a lane holds, whose loads overlap.
constexpr int kHeld = 2;

struct Merge {
  const void* x;
  int64_t tokens, d, batch, rows;
  const int32_t *slot, *sizes;
  BtrIntegers from, to;
  void* out;
  int32_t* new_sizes;
};

// A warp sums a part of a row: 32 lanes with kHeld vectors of 16 bytes each, or with kHeld elements.
template <DType kType, bool kVectors>
__global__ void __launch_bounds__(kThreads, 4) merge_means(Merge merge) {
  using V = std::conditional_t<kVectors, uint4, std::conditional_t<kType == DType::f32, uint32_t, uint16_t>>;
  constexpr int K = kVectors ? kPerVector<kType> : 1;
  const int lane = threadIdx.x % 32;
  const int64_t vectors = merge.d / K, parts = divide_up(vectors, 32 * kHeld);
  const int64_t all_rows = merge.from.data ? merge.rows : merge.batch * merge.rows;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; unit < all_rows * parts; unit += stride) {
    const int64_t row = unit / parts, part = unit - row * parts;
    Range range{0, 0};
    int64_t slot = row;
    if (!merge.from.data) {
      range = {row / merge.rows * (merge.tokens / merge.batch), merge.tokens / merge.batch};
      slot = row % merge.rows;
    } else if (merge.batch > 0 && row >= integer(merge.to, 0) && row < integer(merge.to, merge.batch)) {
      const int64_t passage = last_that(merge.batch, [&](int64_t i) { return integer(merge.to, i) <= row; });
      range = passage_rows(merge.from, 0, merge.tokens, passage);
      slot = row - integer(merge.to, passage);
    }

    float sums[kHeld][K];
    int32_t weight = 0;
#pragma unroll
    for (auto& of_vector : sums) {
#pragma unroll
      for (float& sum : of_vector) sum = 0.0f;
    }
    const auto* x = static_cast<const V*>(merge.x) + range.begin * vectors;
    const int64_t first = part * 32 * kHeld + lane;
    tokens_of_slot(merge.slot + range.begin, range.rows, slot, [&](int64_t token) {
      const int32_t size = merge.sizes ? merge.sizes[range.begin + token] : 1;
      V loaded[kHeld];
#pragma unroll
      for (int u = 0; u < kHeld; ++u) loaded[u] = first + 32 * u < vectors ? x[token * vectors + first + 32 * u] : V{};
      weight += size;
#pragma unroll
      for (int u = 0; u < kHeld; ++u) {
#pragma unroll
        for (int i = 0; i < K; ++i) {
          sums[u][i] = add(sums[u][i], multiply(element<kType>(loaded[u], i), static_cast<float>(size)));
        }
      }
    });

    const float divisor = static_cast<float>(weight > 1 ? weight : 1);
    auto* out = static_cast<V*>(merge.out) + row * vectors;
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
#pragma unroll
      for (float& sum : sums[u]) sum = sum / divisor;
      if (first + 32 * u < vectors) out[first + 32 * u] = rounded<kType, V>(sums[u]);
    }
    if (part == 0 && lane == 0) merge.new_sizes[row] = weight;
  }
}

template <DType kType>
int merge(const Merge& merge, cudaStream_t stream) {
  constexpr int64_t K = kPerVector<kType>;
  const int64_t rows = merge.from.data ? merge.rows : merge.batch * merge.rows;
  if (merge.d % K == 0 && aligned(merge.x, 16) && aligned(merge.out, 16)) {
    return launch(merge_means<kType, true>, blocks_for_warps(rows * divide_up(merge.d / K, 32 * kHeld)), stream, merge);
  }
  return launch(merge_means<kType, false>, blocks_for_warps(rows * divide_up(merge.d, 32 * kHeld)), stream, merge);
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_merge_tokens(const void* x, int dtype, int64_t tokens, int64_t d, int64_t batch, int64_t rows,
                                     const int32_t* slot, const int32_t* sizes, BtrIntegers from, BtrIntegers to, void* out,
                                     int32_t* new_sizes, cudaStream_t stream) {
  using btr::DType;
  if (rows <= 0 || d <= 0 || (batch <= 0 && !from.data)) return cudaSuccess;
  const btr::cuda::Merge merge{x, tokens, d, batch, rows, slot, sizes, from, to, out, new_sizes};
  switch (static_cast<DType>(dtype)) {
    case DType::f32: return btr::cuda::merge<DType::f32>(merge, stream);
    case DType::f16: return btr::cuda::merge<DType::f16>(merge, stream);
    case DType::bf16: return btr::cuda::merge<DType::bf16>(merge, stream);
    default: return cudaErrorInvalidValue;
  }
}
