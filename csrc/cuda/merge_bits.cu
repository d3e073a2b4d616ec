// Majority votes of the tokens of each row: see launchers.h. Bound by reading bits, each token once.
#include <type_traits>

#include "cuda/binary_tile.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/passages.cuh"

namespace btr::cuda {
namespace {

// Rows of the result that a block makes, all of one passage.
constexpr int kRows = 64;

struct Memory {
  // Of each row the first two of its tokens, how many they are and how much they weigh.
  int32_t first[kRows], second[kRows], count[kRows], weight[kRows];
};

struct Merge {
  const uint8_t* bits;
  int64_t tokens, w, batch, rows;
  const int32_t *slot, *sizes;
  BtrIntegers from, to;
  uint8_t* out;
  int32_t* new_sizes;

  // Packed results end with a passage of no tokens: the rows that no other has.
  __device__ int64_t passages() const { return from.data ? batch + 1 : batch; }
  __device__ int64_t first_row(int64_t passage) const {
    return passage > batch ? rows : clamped(integer(to, passage), 0, rows);
  }
};

template <int kAlignment>
using vector = std::conditional_t<kAlignment == 16, uint4, std::conditional_t<kAlignment == 4, uint32_t, uint8_t>>;

template <int kAlignment>
__global__ void __launch_bounds__(kThreads, 3) merge_rows(Merge merge) {
  auto& memory = *reinterpret_cast<Memory*>(shared_memory());
  // Which passage, and which of its rows: a packed passage p has the blocks from first_row(p) / kRows + p on.
  int64_t passage, block, begin_out, rows;
  if (merge.from.data) {
    passage = last_that(merge.passages(), [&](int64_t i) { return merge.first_row(i) / kRows + i <= blockIdx.x; });
    begin_out = merge.first_row(passage), block = blockIdx.x - (begin_out / kRows + passage);
    rows = merge.first_row(passage + 1) - begin_out;
  } else {
    const int64_t each = divide_up(merge.rows, kRows);
    passage = blockIdx.x / each, block = blockIdx.x % each;
    begin_out = passage * merge.rows, rows = merge.rows;
  }
  const int64_t first = block * kRows;
  if (block < 0 || first >= rows) return;
  const int here = static_cast<int>(rows - first < kRows ? rows - first : kRows);
  const Range range = passage >= merge.batch ? Range{0, 0}
                                             : passage_rows(merge.from, merge.tokens / merge.batch, merge.tokens, passage);
  const int32_t* slots = merge.slot + range.begin;
  const int32_t* sizes = merge.sizes ? merge.sizes + range.begin : nullptr;

  constexpr int32_t kNone = 0x7fffffff;
  const int thread = threadIdx.x;
  if (thread < kRows) {
    memory.first[thread] = memory.second[thread] = kNone;
    memory.count[thread] = memory.weight[thread] = 0;
  }
  __syncthreads();
  for (int64_t token = thread; token < range.rows; token += kThreads) {
    const int64_t row = slots[token] - first;
    if (row < 0 || row >= here) continue;
    atomicMin(memory.first + row, static_cast<int32_t>(token));
    atomicAdd(memory.count + row, 1);
    atomicAdd(memory.weight + row, sizes ? sizes[token] : 1);
  }
  __syncthreads();
  for (int64_t token = thread; token < range.rows; token += kThreads) {
    const int64_t row = slots[token] - first;
    if (row >= 0 && row < here && memory.first[row] != token) atomicMin(memory.second + row, static_cast<int32_t>(token));
  }
  __syncthreads();

  // One token, or the heavier of two, is the majority: where two differ, the heavier wins, and the first if they weigh the
  // same.
  using V = vector<kAlignment>;
  const int vectors = static_cast<int>(merge.w / sizeof(V));
  const auto* bits = reinterpret_cast<const V*>(merge.bits) + range.begin * vectors;
  auto* out = reinterpret_cast<V*>(merge.out) + (begin_out + first) * vectors;
#pragma unroll 2
  for (int i = thread; i < here * vectors; i += kThreads) {
    const int row = i / vectors, count = memory.count[row];
    if (count > 2) continue;
    int64_t token = memory.first[row];
    if (count == 2 && sizes && sizes[memory.second[row]] > sizes[token]) token = memory.second[row];
    out[i] = memory.weight[row] > 0 ? bits[token * vectors + i % vectors] : V{};
  }
  if (thread < here) merge.new_sizes[begin_out + first + thread] = memory.weight[thread];

  using W = std::conditional_t<kAlignment == 1, uint8_t, uint32_t>;
  const int64_t words = merge.w / sizeof(W);
  for (int row = thread / 32; row < here; row += kWarps) {
    if (memory.count[row] <= 2) continue;
    vote<W>(reinterpret_cast<const W*>(merge.bits) + range.begin * words, words, slots, sizes, range.rows, first + row,
            reinterpret_cast<W*>(merge.out) + (begin_out + first + row) * words);
  }
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_merge_bits(const uint8_t* bits, int64_t tokens, int64_t w, int64_t batch, int64_t rows,
                                   const int32_t* slot, const int32_t* sizes, BtrIntegers from, BtrIntegers to, uint8_t* out,
                                   int32_t* new_sizes, cudaStream_t stream) {
  using namespace btr::cuda;
  const bool packed = from.data;
  if (rows <= 0 || (batch <= 0 && !packed)) return cudaSuccess;
  const Merge merge{bits, tokens, w, batch, rows, slot, sizes, from, to, out, new_sizes};
  const int64_t blocks = packed ? rows / kRows + batch + 1 : batch * divide_up(rows, kRows);
  const int alignment_in = row_alignment(bits, w), alignment_out = row_alignment(out, w);
  switch (alignment_in < alignment_out ? alignment_in : alignment_out) {
    case 16: return launch(merge_rows<16>, {blocks, sizeof(Memory)}, stream, merge);
    case 4: return launch(merge_rows<4>, {blocks, sizeof(Memory)}, stream, merge);
    default: return launch(merge_rows<1>, {blocks, sizeof(Memory)}, stream, merge);
  }
}
