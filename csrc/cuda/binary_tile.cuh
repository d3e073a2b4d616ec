// Tiles of common bits: 64 rows of a by 64 rows of b, by the tensor cores (`binary_mma.cuh`).
//
// A block stages 128 bytes of each row in shared memory and multiplies them there; longer rows take several steps. While
// it multiplies, the words of the next step are on their way to registers, 16 bytes a load. Rows stand 160 bytes apart:
// the 8-byte reads of four rows by four lanes each then fall on different banks.
#pragma once

#include <cstdint>

#include "cuda/binary_mma.cuh"
#include "cuda/grid.cuh"

namespace btr::cuda {

constexpr int kTileRows = 64;
constexpr int kStepBytes = 128;
constexpr int kPitch = kStepBytes + 32;
// Loads of 16 bytes by which a thread takes part in staging the rows of one operand.
constexpr int kPieces = kTileRows * kStepBytes / 16 / kThreads;

struct TileMemory {
  uint8_t a[kTileRows * kPitch], b[kTileRows * kPitch];
  int32_t ones_a[kTileRows], ones_b[kTileRows];  // population counts of the rows
};

// 16 bytes of a row of w, from `offset` on, 0 past its end; `kAlignment` divides w and the row's address.
template <int kAlignment>
__device__ __forceinline__ uint4 load_piece(const uint8_t* row, int64_t offset, int64_t w) {
  uint4 piece{};
  if constexpr (kAlignment == 16) {
    if (offset < w) piece = *reinterpret_cast<const uint4*>(row + offset);
  } else if constexpr (kAlignment == 4) {
    const auto word = [&](int i) {
      return offset + 4 * i < w ? *reinterpret_cast<const uint32_t*>(row + offset + 4 * i) : 0u;
    };
    piece = {word(0), word(1), word(2), word(3)};
  } else {
    const auto word = [&](int i) {
      uint32_t bytes = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (offset + 4 * i + j < w) bytes |= static_cast<uint32_t>(row[offset + 4 * i + j]) << (8 * j);
      }
      return bytes;
    };
    piece = {word(0), word(1), word(2), word(3)};
  }
  return piece;
}

// One operand's part of a step, on its way from global to shared memory.
template <int kAlignment>
struct Staged {
  uint4 pieces[kPieces];
  int32_t ones[kPieces];  // of the row so far, in all 8 threads that stage it

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int u = 0; u < kPieces; ++u) ones[u] = 0;
  }

  // row(i): the address of row i of the tile, or null if there is none.
  template <typename Row>
  __device__ __forceinline__ void load(Row row, int64_t offset, int64_t w) {
#pragma unroll
    for (int u = 0; u < kPieces; ++u) {
      const uint8_t* source = row(static_cast<int>(threadIdx.x / 8) + u * (kThreads / 8));
      pieces[u] = source ? load_piece<kAlignment>(source, offset + threadIdx.x % 8 * 16, w) : uint4{};
    }
  }

  // place(i): which row of shared memory row i of the tile takes.
  template <typename Place>
  __device__ __forceinline__ void store(uint8_t* memory, int32_t* all_ones, Place place) {
#pragma unroll
    for (int u = 0; u < kPieces; ++u) {
      const int row = static_cast<int>(threadIdx.x / 8) + u * (kThreads / 8);
      const uint4 piece = pieces[u];
      *reinterpret_cast<uint4*>(memory + place(row) * kPitch + threadIdx.x % 8 * 16) = piece;
      int32_t count = __popc(piece.x) + __popc(piece.y) + __popc(piece.z) + __popc(piece.w);
#pragma unroll
      for (int distance = 4; distance >= 1; distance /= 2) count += __shfl_xor_sync(0xffffffffu, count, distance);
      ones[u] += count;
      if (threadIdx.x % 8 == 0) all_ones[row] = ones[u];
    }
  }
};

// A warp's part of a tile: 16 rows of a by 32 of b. A lane's counts of one row of a are with 4 consecutive rows of b, and
// with 4 more 16 rows further: rows of b lie in shared memory in the order that gives this.
struct Counts {
  int32_t c[4][4];

  __device__ __forceinline__ static int first_row() { return static_cast<int>(threadIdx.x / 32) % 4 * 16; }
  __device__ __forceinline__ static int first_column() { return static_cast<int>(threadIdx.x / 32) / 4 * 32; }
  // The rows of a (of two, `half` 0 and 1) and of b (of 4 consecutive ones in two groups) that this lane has counts of.
  __device__ __forceinline__ static int row(int half) { return first_row() + half * 8 + threadIdx.x % 32 / 4; }
  __device__ __forceinline__ static int column(int group) {
    return first_column() + group * 16 + static_cast<int>(threadIdx.x) % 4 * 4;
  }
  __device__ __forceinline__ int32_t at(int half, int group, int i) const { return c[2 * group + i / 2][2 * half + i % 2]; }

  // Where row i of b of a tile lies in shared memory.
  __device__ __forceinline__ static int place_of_b(int i) {
    return (i & ~15) + i % 4 / 2 * 8 + i % 16 / 4 * 2 + i % 2;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& of_row : c) of_row[0] = of_row[1] = of_row[2] = of_row[3] = 0;
  }

  // Adds the staged bytes, of which `bytes` of a row are not zero.
  __device__ __forceinline__ void add(const TileMemory& memory, int64_t bytes) {
    const int group = threadIdx.x % 32 / 4, in_group = threadIdx.x % 4;
    const uint8_t* row_a = memory.a + (first_row() + group) * kPitch + in_group * 8;
    const uint8_t* row_b = memory.b + (first_column() + group) * kPitch + in_group * 8;
    const int steps = static_cast<int>(bytes < kStepBytes ? divide_up(bytes, 32) : kStepBytes / 32);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const uint2 low = *reinterpret_cast<const uint2*>(row_a + step * 32);
      const uint2 high = *reinterpret_cast<const uint2*>(row_a + step * 32 + 8 * kPitch);
      const uint32_t words_a[4] = {low.x, high.x, low.y, high.y};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint2 loaded = *reinterpret_cast<const uint2*>(row_b + step * 32 + j * 8 * kPitch);
        const uint32_t words_b[2] = {loaded.x, loaded.y};
        count_common_bits(c[j], words_a, words_b);
      }
    }
  }
};

// The counts of one tile of a with consecutive tiles of b, `tiles` of them: each is given to use(tile, counts), when
// memory.ones_a and ones_b hold the population counts of its rows. row_a(i) and row_b(tile, i) are addresses, or null
// for rows that do not exist and have no bits. All threads of the block call it.
template <int kAlignment, typename RowA, typename RowB, typename Use>
__device__ __forceinline__ void walk_tiles(TileMemory& memory, int64_t w, int tiles, RowA row_a, RowB row_b, Use use) {
  const int64_t steps = divide_up(w, kStepBytes);
  Staged<kAlignment> a, b;
  Counts counts;
  a.clear();
  a.load(row_a, 0, w);
  b.load([&](int i) { return row_b(0, i); }, 0, w);
  int64_t step = 0;
  bool new_a = true;
  for (int tile = 0; tile < tiles;) {
    if (step == 0) counts.clear(), b.clear();
    __syncthreads();  // all have read what was staged before
    if (new_a) a.store(memory.a, memory.ones_a, [](int i) { return i; });
    b.store(memory.b, memory.ones_b, Counts::place_of_b);
    __syncthreads();
    const int64_t here = step * kStepBytes;
    const int current = tile;
    if (++step == steps) step = 0, ++tile;
    if (tile < tiles) {
      new_a = steps > 1;  // else it stays
      if (new_a) {
        if (step == 0) a.clear();
        a.load(row_a, step * kStepBytes, w);
      }
      b.load([&](int i) { return row_b(tile, i); }, step * kStepBytes, w);
    }
    counts.add(memory, w - here);
    if (step == 0) use(current, counts);
  }
}

// The largest of 16, 4 and 1 that divides the addresses of all rows of w bytes.
inline int row_alignment(const void* rows, int64_t w) {
  return w % 16 == 0 && aligned(rows, 16) ? 16 : w % 4 == 0 && aligned(rows, 4) ? 4 : 1;
}

}  // namespace btr::cuda
