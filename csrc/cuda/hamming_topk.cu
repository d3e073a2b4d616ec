// The k nearest rows of b: see launchers.h. All distances first (hamming_distance.cu), then a block selects from each row of
// them. Bound by writing and reading distances.
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/passages.cuh"

namespace btr::cuda {
namespace {

// Distances are compared by digits of kBits bits, the highest first: how many have each digit is counted in shared memory.
constexpr int kBits = 11, kDigits = 1 << kBits;
// Results that are sorted in shared memory; more are sorted where they are written.
constexpr int kSorted = 1024;
// Distances that a thread looks at at a time.
constexpr int kEach = 4;

struct Memory {
  union {
    int32_t counts[kDigits];
    int64_t keys[kSorted];
  };
  int32_t sums[kWarps], digit, before;
};

// The sum of a value over the threads before this one, and over all of the block in `all`.
__device__ __forceinline__ int32_t sum_before(Memory& memory, int32_t value, int32_t& all) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t up_to = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t before = __shfl_up_sync(kAllLanes, up_to, distance);
    up_to += lane >= distance ? before : 0;
  }
  if (lane == 31) memory.sums[warp] = up_to;
  __syncthreads();
  int32_t result = up_to - value;
  all = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    all += memory.sums[i];
    result += i < warp ? memory.sums[i] : 0;
  }
  __syncthreads();
  return result;
}

// The distance of the k-th nearest. `rank` becomes its place, from 1 on, among those at that distance.
__device__ __forceinline__ int32_t kth_distance(Memory& memory, const int32_t* distances, int64_t n, int32_t most,
                                                int32_t& rank) {
  int32_t found = 0, shift = 0;
  while (most >> shift >= kDigits) shift += kBits;
  for (bool first = true; shift >= 0; shift -= kBits, first = false) {
    for (int digit = threadIdx.x; digit < kDigits; digit += kThreads) memory.counts[digit] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const int32_t distance = distances[i];
      if (first || (distance ^ found) >> (shift + kBits) == 0) {
        atomicAdd(memory.counts + (distance >> shift & (kDigits - 1)), 1);
      }
    }
    __syncthreads();
    constexpr int kMine = kDigits / kThreads;
    int32_t mine = 0, all;
#pragma unroll
    for (int i = 0; i < kMine; ++i) mine += memory.counts[threadIdx.x * kMine + i];
    int32_t before = sum_before(memory, mine, all);
    if (before < rank && rank <= before + mine) {
      int digit = threadIdx.x * kMine;
      for (; before + memory.counts[digit] < rank; ++digit) before += memory.counts[digit];
      memory.digit = digit, memory.before = before;
    }
    __syncthreads();
    found |= memory.digit << shift;
    rank -= memory.before;
    __syncthreads();
  }
  return found;
}

// Sorts distinct keys, by comparisons whose order is the same for all keys: those past the end count as the largest.
__device__ __forceinline__ void sort(int64_t* keys, int64_t k) {
  const auto compare = [&](int64_t i, int64_t other) {
    if (other <= i || other >= k) return;
    const int64_t left = keys[i], right = keys[other];
    if (left > right) keys[i] = right, keys[other] = left;
  };
  for (int64_t size = 2; size / 2 < k; size *= 2) {
    for (int64_t i = threadIdx.x; i < k; i += kThreads) compare(i, i ^ (size - 1));
    __syncthreads();
    for (int64_t stride = size / 4; stride >= 1; stride /= 2) {
      for (int64_t i = threadIdx.x; i < k; i += kThreads) compare(i, i ^ stride);
      __syncthreads();
    }
  }
}

// all (m, n): a block for each row.
template <bool kVectors>
__global__ void __launch_bounds__(kThreads, 4)
    select_nearest(const int32_t* __restrict__ all, int64_t n, int64_t k, int32_t most, int32_t* __restrict__ distances,
                   int64_t* __restrict__ indices) {
  auto& memory = *reinterpret_cast<Memory*>(shared_memory());
  const int32_t* row = all + blockIdx.x * n;
  distances += blockIdx.x * k, indices += blockIdx.x * k;

  int32_t ties = static_cast<int32_t>(k);
  const int32_t limit = kth_distance(memory, row, n, most, ties);
  // All closer rows, and of those at this distance the first. Keys are in any order; distance, then index, sorts them.
  int64_t* keys = k <= kSorted ? memory.keys : indices;
  int64_t closer_before = 0, tied_before = 0;
  const int64_t closer_in_all = k - ties;
  for (int64_t first = 0; first < n; first += kThreads * kEach) {
    const int64_t mine = first + threadIdx.x * kEach;
    int32_t found[kEach];
    if constexpr (kVectors) {
      const int4 loaded = mine < n ? *reinterpret_cast<const int4*>(row + mine) : int4{};
      found[0] = loaded.x, found[1] = loaded.y, found[2] = loaded.z, found[3] = loaded.w;
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) found[i] = mine + i < n ? row[mine + i] : 0;
    }
    int32_t count = 0;  // of closer ones above those at the limit: a stripe has fewer than 2^15 of either
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (mine + i < n) count += found[i] < limit ? 1 << 16 : found[i] == limit ? 1 : 0;
    }
    int32_t in_stripe;
    const int32_t before = sum_before(memory, count, in_stripe);
    int64_t closer = closer_before + (before >> 16), tied = tied_before + (before & 0xffff);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (mine + i >= n || found[i] > limit) continue;
      const int64_t place = found[i] < limit ? closer++ : closer_in_all + tied++;
      if (place < k) keys[place] = static_cast<int64_t>(found[i]) << 32 | (mine + i);
    }
    closer_before += in_stripe >> 16, tied_before += in_stripe & 0xffff;
  }
  __syncthreads();
  sort(keys, k);
  for (int64_t i = threadIdx.x; i < k; i += kThreads) {
    const int64_t key = keys[i];
    distances[i] = static_cast<int32_t>(key >> 32), indices[i] = key & 0xffffffff;
  }
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_hamming_topk(const uint8_t* a, const uint8_t* b, int64_t m, int64_t n, int64_t w, int64_t k,
                                     int32_t* scratch, int64_t scratch_rows, int32_t* distances, int64_t* indices,
                                     cudaStream_t stream) {
  using namespace btr::cuda;
  if (m <= 0 || k <= 0) return cudaSuccess;
  if (k > n || n > 0x7fffffff || scratch_rows <= 0) return cudaErrorInvalidValue;
  for (int64_t first = 0; first < m; first += scratch_rows) {
    const int64_t rows = m - first < scratch_rows ? m - first : scratch_rows;
    if (const int error = btr_cuda_hamming_distance(a + first * w, b, 1, rows, n, w, scratch, stream)) return error;
    const auto kernel = n % 4 == 0 && aligned(scratch, 16) ? select_nearest<true> : select_nearest<false>;
    const int error = launch(kernel, {rows, sizeof(Memory)}, stream, scratch, n, k, static_cast<int32_t>(8 * w),
                                    distances + first * k, indices + first * k);
    if (error) return error;
  }
  return cudaSuccess;
}
