// Packed bits of the stored ones and a table of the others: see launchers.h. Bound by reading a row of both tables for
// each token.
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/passages.cuh"

namespace btr::cuda {
namespace {

// Tokens that a warp works on at once: their ids, then their rows, then their codes are under way together.
constexpr int kTokens = 4;

// The bits of `code` (c bytes) from `first` on, as many as W has; 0 past its end.
template <typename W>
__device__ __forceinline__ uint32_t bits_from(const uint8_t* code, int64_t c, int64_t first) {
  uint64_t bits = 0;
#pragma unroll
  for (int i = 0; i <= static_cast<int>(sizeof(W)); ++i) {
    if (first / 8 + i < c) bits |= static_cast<uint64_t>(code[first / 8 + i]) << (8 * i);
  }
  return static_cast<uint32_t>(bits >> (first % 8));
}

// `code`'s bits, the lowest first, at the places of the ones of `mask`; zeros elsewhere.
__device__ __forceinline__ uint32_t scattered(uint32_t code, uint32_t mask) {
  uint32_t result = 0;
  for (; mask; mask &= mask - 1, code >>= 1) result |= code & 1 ? mask & (0u - mask) : 0;
  return result;
}

// A lane holds a word of a token, in each step over its row.
template <typename W>
__global__ void __launch_bounds__(kThreads, 4)
    expand_words(const uint8_t* __restrict__ codes, BtrIntegers ids, const W* __restrict__ mask, const W* __restrict__ fill,
                 int64_t tokens, int64_t table_rows, int64_t c, int64_t words, W* __restrict__ out) {
  const int lane = threadIdx.x % 32;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps * kTokens;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  for (int64_t first = warp * kTokens; first < tokens; first += stride) {
    int64_t row[kTokens], used[kTokens];
#pragma unroll
    for (int u = 0; u < kTokens; ++u) {
      row[u] = first + u < tokens ? clamped(integer(ids, first + u), 0, table_rows - 1) * words : 0;
      used[u] = 0;
    }
    for (int64_t word = lane; word - lane < words; word += 32) {
      uint32_t stored[kTokens], other[kTokens];
#pragma unroll
      for (int u = 0; u < kTokens; ++u) {
        const bool inside = first + u < tokens && word < words;
        stored[u] = inside ? mask[row[u] + word] : 0;
        other[u] = inside ? fill[row[u] + word] : 0;
      }
#pragma unroll
      for (int u = 0; u < kTokens; ++u) {
        const int32_t count = __popc(stored[u]);
        int32_t up_to = count;  // of the lanes up to this one
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
          const int32_t before = __shfl_up_sync(kAllLanes, up_to, distance);
          up_to += lane >= distance ? before : 0;
        }
        if (first + u < tokens && word < words) {
          const uint32_t code = bits_from<W>(codes + (first + u) * c, c, used[u] + up_to - count);
          out[(first + u) * words + word] = static_cast<W>((other[u] & ~stored[u]) | scattered(code, stored[u]));
        }
        used[u] += __shfl_sync(kAllLanes, up_to, 31);
      }
    }
  }
}

template <typename W>
int expand(const uint8_t* codes, BtrIntegers ids, const uint8_t* mask, const uint8_t* fill, int64_t tokens,
           int64_t table_rows, int64_t c, int64_t w, uint8_t* out, cudaStream_t stream) {
  return launch(expand_words<W>, blocks_for_warps(divide_up(tokens, kTokens)), stream, codes, ids,
                reinterpret_cast<const W*>(mask), reinterpret_cast<const W*>(fill), tokens, table_rows, c,
                static_cast<int64_t>(w / sizeof(W)), reinterpret_cast<W*>(out));
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_expand_bits(const uint8_t* codes, BtrIntegers ids, const uint8_t* mask, const uint8_t* fill,
                                    int64_t tokens, int64_t table_rows, int64_t c, int64_t w, uint8_t* out,
                                    cudaStream_t stream) {
  using namespace btr::cuda;
  if (tokens <= 0 || table_rows <= 0 || w <= 0) return cudaSuccess;
  if (w % 4 == 0 && aligned(mask, 4) && aligned(fill, 4) && aligned(out, 4)) {
    return expand<uint32_t>(codes, ids, mask, fill, tokens, table_rows, c, w, out, stream);
  }
  return expand<uint8_t>(codes, ids, mask, fill, tokens, table_rows, c, w, out, stream);
}
