// Packs the signs of a matrix: see launchers.h. Bound by reading x; the bits are 1/8 to 1/32 of that.
#include <type_traits>

#include "cuda/bits.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace btr::cuda {
namespace {

// Bytes of a vector load that every thread has in flight: 8 x 16 bytes, times 1024 or more resident threads, covers the
// latency-bandwidth product of HBM3 several times over.
constexpr int kLoads = 8;
// Bits of one warp tile: every lane ends with one 32-bit word.
constexpr int kTileWords = 32;

template <DType kType>
using storage = std::conditional_t<kType == DType::f32, uint32_t,
                                   std::conditional_t<kType == DType::boolean, uint8_t, uint16_t>>;

// d % 8 == 0: rows follow each other without pad bits, so the matrix is one sequence of `elements` bits.
// Each warp takes kLoads / G tiles of 1024 elements at a time; words leave as one full 128-byte line per tile.
template <DType kType>
__global__ void __launch_bounds__(kThreads, 4)
    pack_sequence(const uint4* __restrict__ x, int64_t elements, uint32_t* __restrict__ out) {
  constexpr int K = kPerVector<kType>, G = 32 / K, kTiles = kLoads / G;
  const int lane = threadIdx.x % 32;
  const int64_t words = elements / 32, vectors = words * G, tiles = divide_up(words, kTileWords);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps * kTiles;

  for (int64_t tile = warp * kTiles; tile < tiles; tile += stride) {
    uint4 loaded[kTiles][G];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < G; ++j) {
        const int64_t vector = (tile + t) * (kTileWords * G) + j * 32 + lane;
        loaded[t][j] = vector < vectors ? x[vector] : uint4{};
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < G; ++j) word |= signs_of_vector<kType>(loaded[t][j]) << (j * K);
      word = transpose_fields<K>(word, lane);
      // Load j of the tile covers K words; this lane now holds word lane / G of load lane % G.
      const int64_t index = (tile + t) * kTileWords + (lane % G) * K + lane / G;
      if (index < words) out[index] = word;
    }
  }

  // Fewer than 32 elements, in whole bytes, may remain.
  const int64_t byte = words * 4 + threadIdx.x;
  if (blockIdx.x == gridDim.x - 1 && byte < elements / 8) {
    const auto* element = reinterpret_cast<const storage<kType>*>(x) + byte * 8;
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= static_cast<uint32_t>(is_one<kType>(element[i])) << i;
    reinterpret_cast<uint8_t*>(out)[byte] = static_cast<uint8_t>(bits);
  }
}

// Any d, any alignment: a warp takes 256 channels of a row, a lane one element of each 32, and writes 32 bytes.
// Coalesced like the fast path but with scalar loads, so bound by the load units rather than by memory.
template <DType kType>
__global__ void __launch_bounds__(kThreads)
    pack_rows(const storage<kType>* __restrict__ x, int64_t rows, int64_t d, uint8_t* __restrict__ out) {
  const int lane = threadIdx.x % 32;
  const int64_t bytes = divide_up(d, 8), chunks = divide_up(d, 256);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; unit < rows * chunks; unit += stride) {
    const int64_t row = unit / chunks, first = (unit - row * chunks) * 256;
    uint32_t mine = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int64_t c = first + j * 32 + lane;
      const uint32_t word = __ballot_sync(0xffffffffu, c < d && is_one<kType>(x[row * d + c]));
      if (lane / 4 == j) mine = word;
    }
    const int64_t byte = first / 8 + lane;
    if (byte < bytes) out[row * bytes + byte] = static_cast<uint8_t>(mine >> (lane % 4 * 8));
  }
}

template <DType kType>
int pack(const void* x, int64_t rows, int64_t d, uint8_t* out, cudaStream_t stream) {
  if (d % 8 == 0 && aligned(x, 16) && aligned(out, 4)) {
    constexpr int kTiles = kLoads * kPerVector<kType> / 32;
    const int64_t elements = rows * d, warps = divide_up(elements, 32 * kTileWords * kTiles);
    return launch(pack_sequence<kType>, blocks_for_warps(warps), stream, static_cast<const uint4*>(x), elements,
                  reinterpret_cast<uint32_t*>(out));
  }
  return launch(pack_rows<kType>, blocks_for_warps(rows * divide_up(d, 256)), stream,
                static_cast<const storage<kType>*>(x), rows, d, out);
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_pack_bits(const void* x, int dtype, int64_t rows, int64_t d, uint8_t* out, cudaStream_t stream) {
  using btr::DType;
  if (rows <= 0 || d <= 0) return cudaSuccess;
  switch (static_cast<DType>(dtype)) {
    case DType::f32: return btr::cuda::pack<DType::f32>(x, rows, d, out, stream);
    case DType::f16: return btr::cuda::pack<DType::f16>(x, rows, d, out, stream);
    case DType::bf16: return btr::cuda::pack<DType::bf16>(x, rows, d, out, stream);
    case DType::boolean: return btr::cuda::pack<DType::boolean>(x, rows, d, out, stream);
    default: return cudaErrorInvalidValue;
  }
}
