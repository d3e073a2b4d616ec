// Bipartite matching of each passage's tokens: see launchers.h. One launch: a block finishes a passage, or, where passages
// are long, several blocks share its comparisons and the last of them to end finishes it. Distances never reach memory.
//
// Bound by latencies and by reading the bits: the comparisons of 128 tokens of 768 bits are 96 tensor instructions.
#include <type_traits>

#include "cuda/binary_tile.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/passages.cuh"

namespace btr::cuda {
namespace {

constexpr int kTileTokens = 2 * kTileRows;
// Pairs whose distances the block that finishes a passage keeps in shared memory.
constexpr int kPairsHeld = 4096;
// Passages of more tokens than this, on average, are shared among blocks where they alone are too few for the device.
constexpr int64_t kTokensAlone = 256;

struct Memory {
  union {
    TileMemory tile;
    int32_t distances[kPairsHeld];
  };
  // The nearest of each row of a that either half of the warps has found: distance without the row's own bits, and row.
  int32_t value[2][kTileRows], best[2][kTileRows];
  int32_t counts[kWarps][2];
  int32_t last;
};

struct Match {
  const uint8_t* bits;
  int64_t tokens, w, batch, rows_each;
  BtrIntegers offsets, lengths, keep;
  int64_t tiles_each, blocks_each;  // tiles of 64 pairs that a block does, 0 for all of a passage; blocks of a passage
  int32_t *slot, *new_lengths;
  // Scratch, of each passage at its tokens: its pairs' distances and partners, and what merges before each. `done` counts
  // the blocks of each passage.
  int32_t *distance, *best, *merged_before, *done;
  uint8_t* voted;

  // How many tokens of a passage are to be left.
  __device__ int target(int64_t passage, int64_t length) const {
    return static_cast<int>(clamped(integer(keep, passage), 1, length));
  }
  __device__ int64_t room(int64_t passage) const { return passage_rows(offsets, rows_each, tokens, passage).rows; }
  __device__ Range range(int64_t passage) const {
    Range found = passage_rows(offsets, rows_each, tokens, passage);
    if (lengths.data) found.rows = clamped(integer(lengths, passage), 0, found.rows);
    return found;
  }
};

// The nearest odd token of the 64 even ones from pair `first` on, among the m tokens of a passage.
template <int kAlignment>
__device__ __forceinline__ void nearest(Memory& memory, const uint8_t* passage, int64_t w, int m, int first,
                                        int32_t* distance, int32_t* best) {
  const int pairs = (m + 1) / 2, partners = m / 2;
  int32_t value[2], where[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) value[half] = 0x7fffffff, where[half] = 0;
  const auto row_a = [&](int i) { return first + i < pairs ? passage + int64_t(2) * (first + i) * w : nullptr; };
  const auto row_b = [&](int tile, int i) {
    const int b = tile * kTileRows + i;
    return b < partners ? passage + (int64_t(2) * b + 1) * w : nullptr;
  };
  walk_tiles<kAlignment>(memory.tile, w, static_cast<int>(divide_up(partners, kTileRows)), row_a, row_b,
                         [&](int tile, const Counts& counts) {
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const int place = Counts::column(group);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int b = tile * kTileRows + place + i;
        const int32_t ones = memory.tile.ones_b[place + i];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int32_t found = ones - 2 * counts.at(half, group, i);
          // A lane meets its columns in increasing order: the lowest of equals stays.
          if (b < partners && found < value[half]) value[half] = found, where[half] = b;
        }
      }
    }
  });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int distance_of_lanes = 1; distance_of_lanes <= 2; distance_of_lanes *= 2) {
      const int32_t other = __shfl_xor_sync(kAllLanes, value[half], distance_of_lanes);
      const int32_t its = __shfl_xor_sync(kAllLanes, where[half], distance_of_lanes);
      if (other < value[half] || (other == value[half] && its < where[half])) value[half] = other, where[half] = its;
    }
    if (threadIdx.x % 4 == 0) {
      memory.value[threadIdx.x / 128][Counts::row(half)] = value[half];
      memory.best[threadIdx.x / 128][Counts::row(half)] = where[half];
    }
  }
  __syncthreads();
  const int row = threadIdx.x;
  if (row < kTileRows && first + row < pairs) {
    const int32_t left = memory.value[0][row], right = memory.value[1][row];
    const bool second = right < left || (right == left && memory.best[1][row] < memory.best[0][row]);
    distance[first + row] = memory.tile.ones_a[row] + (second ? right : left);
    best[first + row] = memory.best[second][row];
  }
  __syncthreads();
}

// How many threads of the block have each of two flags, and how many of those before this one. All threads call it.
struct Flags {
  int32_t before[2], all[2];
};
__device__ __forceinline__ Flags count_flags(Memory& memory, bool first, bool second) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned set[2] = {__ballot_sync(kAllLanes, first), __ballot_sync(kAllLanes, second)};
  if (lane < 2) memory.counts[warp][lane] = __popc(lane == 0 ? set[0] : set[1]);
  __syncthreads();
  Flags flags{};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    flags.before[k] = __popc(set[k] & ((1u << lane) - 1));
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      flags.all[k] += memory.counts[i][k];
      flags.before[k] += i < warp ? memory.counts[i][k] : 0;
    }
  }
  __syncthreads();
  return flags;
}

// Merges the `merges` nearest pairs of a passage of m current tokens: `slot` (length) holds the current position of each
// token and then its new one. At least one pair merges; `most` is the largest distance there can be.
__device__ __forceinline__ void select(Memory& memory, const int32_t* distance, const int32_t* best,
                                       int32_t* merged_before, int32_t* slot, int m, int merges, int length, int32_t most) {
  const int pairs = (m + 1) / 2;
  const bool held = pairs <= kPairsHeld;
  if (held) {
    for (int a = threadIdx.x; a < pairs; a += kThreads) memory.distances[a] = __ldcg(distance + a);
    __syncthreads();
  }
  // Memory is read past the first level of caches, which knows nothing of what other blocks wrote.
  const auto known = [&](int a) { return held ? memory.distances[a] : __ldcg(distance + a); };
  // The least distance that at least `merges` pairs do not exceed.
  int32_t low = 0, high = most;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    int32_t count = 0;
    for (int a = threadIdx.x; a < pairs; a += kThreads) count += known(a) <= middle;
#pragma unroll
    for (int k = 16; k >= 1; k /= 2) count += __shfl_xor_sync(kAllLanes, count, k);
    if (threadIdx.x % 32 == 0) memory.counts[threadIdx.x / 32][0] = count;
    __syncthreads();
    int32_t all = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) all += memory.counts[i][0];
    __syncthreads();
    if (all >= merges) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  // Closer pairs all merge; of those at this distance as many as are left, the lowest first.
  int32_t closer = 0;
  for (int first = 0; first < pairs; first += kThreads) {
    const int a = first + threadIdx.x;
    closer += count_flags(memory, a < pairs && known(a) < low, false).all[0];
  }
  int32_t before_closer = 0, before_tied = 0;
  const int32_t ties = merges - closer;
  for (int first = 0; first < pairs; first += kThreads) {
    const int a = first + threadIdx.x;
    const bool is_closer = a < pairs && known(a) < low, is_tied = a < pairs && known(a) == low;
    const Flags flags = count_flags(memory, is_closer, is_tied);
    const int32_t tied = before_tied + flags.before[1];
    const bool merged = is_closer || (is_tied && tied < ties);
    // The lowest bit says whether this one merges, the others how many before it do.
    if (a < pairs) merged_before[a] = 2 * (before_closer + flags.before[0] + (tied < ties ? tied : ties)) + merged;
    before_closer += flags.all[0], before_tied += flags.all[1];
  }
  __syncthreads();
  for (int token = threadIdx.x; token < length; token += kThreads) {
    const int position = slot[token], pair = position / 2;
    const int32_t mine = merged_before[pair];
    if (position % 2 == 0 && mine % 2 == 1) {
      const int partner = __ldcg(best + pair);
      const int32_t its = merged_before[partner];
      slot[token] = 2 * partner + 1 - its / 2 - its % 2;
    } else {  // before an odd position stands its own pair's even one too
      slot[token] = position - mine / 2 - position % 2 * (mine % 2);
    }
  }
  __syncthreads();
}

template <int kAlignment>
__device__ void finish(Memory& memory, const Match& match, int64_t passage) {
  const auto [begin, rows] = match.range(passage);
  const int length = static_cast<int>(rows), room = static_cast<int>(match.room(passage));
  const int target = match.target(passage, length);
  int32_t *slot = match.slot + begin, *distance = match.distance + begin, *best = match.best + begin;
  for (int token = threadIdx.x; token < room; token += kThreads) slot[token] = token < length ? token : -1;
  __syncthreads();
  int m = length;
  for (bool first_round = true; m > target; first_round = false) {
    if (!first_round) {
      // Majorities of the original tokens, then distances between them.
      using W = std::conditional_t<kAlignment == 1, uint8_t, uint32_t>;
      const int64_t words = match.w / sizeof(W);
      const auto* bits = reinterpret_cast<const W*>(match.bits + begin * match.w);
      auto* voted = reinterpret_cast<W*>(match.voted + begin * match.w);
      for (int row = threadIdx.x / 32; row < m; row += kWarps) {
        vote<W>(bits, words, slot, nullptr, length, row, voted + row * words);
      }
      __syncthreads();
      for (int pair = 0; 2 * pair < m; pair += kTileRows) {
        nearest<kAlignment>(memory, match.voted + begin * match.w, match.w, m, pair, distance, best);
      }
    }
    const int merges = m - target < (m + 1) / 2 ? m - target : (m + 1) / 2;
    select(memory, distance, best, match.merged_before + begin, slot, m, merges, length, static_cast<int32_t>(8 * match.w));
    m -= merges;
  }
  if (threadIdx.x == 0) match.new_lengths[passage] = m;
}

// Which passage a block works on and which of its blocks it is. A packed passage p has those from
// offsets[p] / tokens + p on, at least as many as it fills of `tokens` each: no prefix sum is needed, and at most `batch`
// blocks are idle.
__device__ __forceinline__ void place_of_block(const Match& match, int64_t tokens, int64_t& passage, int64_t& block) {
  if (!match.offsets.data) {
    passage = blockIdx.x / match.blocks_each, block = blockIdx.x % match.blocks_each;
    return;
  }
  const auto first_block = [&](int64_t i) { return clamped(integer(match.offsets, i), 0, match.tokens) / tokens + i; };
  passage = last_that(match.batch, [&](int64_t i) { return first_block(i) <= blockIdx.x; });
  block = blockIdx.x - first_block(passage);
}

template <int kAlignment>
__global__ void __launch_bounds__(kThreads, 2) match_passages(Match match) {
  auto& memory = *reinterpret_cast<Memory*>(shared_memory());
  const int64_t tokens_each = match.tiles_each * kTileTokens;
  int64_t passage = blockIdx.x, block = 0;
  if (match.tiles_each > 0) place_of_block(match, tokens_each, passage, block);
  const auto [begin, length] = match.range(passage);
  const int64_t blocks = match.tiles_each > 0 ? divide_up(length, tokens_each) : 1;
  if (block < 0 || (block >= blocks && block > 0)) return;  // an empty passage has a block too

  const int m = static_cast<int>(length), pairs = (m + 1) / 2;
  const int64_t tiles = match.tiles_each > 0 ? match.tiles_each : divide_up(pairs, kTileRows);
  const int64_t end = m > match.target(passage, m) ? (block + 1) * tiles : 0;
  for (int64_t tile = block * tiles; tile < end && tile * kTileRows < pairs; ++tile) {
    nearest<kAlignment>(memory, match.bits + begin * match.w, match.w, m, static_cast<int>(tile * kTileRows),
                        match.distance + begin, match.best + begin);
  }
  if (blocks > 1) {
    // The block that ends last sees what all others wrote before they counted themselves.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) memory.last = atomicAdd(match.done + passage, 1) == blocks - 1;
    __syncthreads();
    if (!memory.last) return;
    __threadfence();
  }
  finish<kAlignment>(memory, match, passage);
}

template <int kAlignment>
int start(Match match, cudaStream_t stream) {
  int64_t blocks = match.batch;
  if (match.tokens > match.batch * kTokensAlone && match.batch < 2 * multiprocessors()) {
    match.tiles_each = 1;
    match.blocks_each = divide_up(match.rows_each, kTileTokens);
    blocks = match.offsets.data ? match.tokens / kTileTokens + match.batch : match.batch * match.blocks_each;
    const auto error = cudaMemsetAsync(match.done, 0, match.batch * sizeof(int32_t), stream);
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  return launch(match_passages<kAlignment>, {blocks, sizeof(Memory)}, stream, match);
}

}  // namespace
}  // namespace btr::cuda

extern "C" int64_t btr_cuda_match_tokens_scratch(int64_t tokens, int64_t w, int64_t batch) {
  using btr::cuda::divide_up;
  return divide_up(tokens * w, 16) * 16 + divide_up((3 * tokens + batch) * sizeof(int32_t), 16) * 16;
}

extern "C" int btr_cuda_match_tokens(const uint8_t* bits, int64_t tokens, int64_t w, int64_t batch, BtrIntegers offsets,
                                     BtrIntegers lengths, BtrIntegers keep, int32_t* slot, int32_t* new_lengths,
                                     void* scratch, cudaStream_t stream) {
  using namespace btr::cuda;
  if (batch <= 0) return cudaSuccess;
  auto* voted = static_cast<uint8_t*>(scratch);
  auto* integers = reinterpret_cast<int32_t*>(voted + divide_up(tokens * w, 16) * 16);
  const int64_t rows_each = offsets.data ? 0 : tokens / batch;
  const Match match{bits, tokens, w, batch, rows_each, offsets, lengths, keep, 0, 1, slot, new_lengths,
                    integers, integers + tokens, integers + 2 * tokens, integers + 3 * tokens, voted};
  switch (row_alignment(bits, w)) {
    case 16: return start<16>(match, stream);
    case 4: return start<4>(match, stream);
    default: return start<1>(match, stream);
  }
}
