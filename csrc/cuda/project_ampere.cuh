// unpack_matmul for many tokens with the tensor cores of a warp: on Ampere, and on what is newer than Hopper. Bound by the
// tensor cores.
//
// A block makes one tile (tiles.cuh). Its threads copy the weight into stages of shared memory, kColumns rows of 128 bytes
// each, several ahead of the multiplications; every warp expands the signs of its tokens in registers.
#pragma once

#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/projection.cuh"
#include "cuda/ptx.cuh"
#include "cuda/signs.cuh"
#include "cuda/tiles.cuh"

namespace btr::cuda {

template <typename Tile>
struct WarpStages {
  static constexpr int kThreads = 32 * Tile::kDown * Tile::kAcross;
  static constexpr int kBytes = Tile::kColumns * kStepBytes;
  static constexpr int kCount = 3;
  // What `finish` takes comes after the last multiplication, in the place of the stages.
  static constexpr int kStagedBytes = 16 * kStagedRow<Tile::kWarpColumns> * 4;
  static constexpr int kRingBytes = kCount * kBytes, kAllStaged = kThreads / 32 * kStagedBytes;
  static constexpr int kSharedBytes = kRingBytes > kAllStaged ? kRingBytes : kAllStaged;
};

// Where vector v (16 bytes) of row r of a stage is: exchanged by r % 8, so that neither copies nor loads of matrices meet a
// bank twice.
__host__ __device__ constexpr int vector_at(int r, int v) { return r * kStepBytes + (v ^ r % 8) * 16; }

#ifdef BTR_AMPERE
// One stage: vectors of a step of one term. Zeros past the rows and past their ends.
template <DType kType, typename Tile>
__device__ __forceinline__ void copy_stage(const Projection& p, uint32_t stage, int column, int term, int step) {
  constexpr int kVectors = kStepBytes / 16, kThreads = WarpStages<Tile>::kThreads;
#pragma unroll
  for (int i = 0; i < Tile::kColumns * kVectors / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x), r = at / kVectors, v = at % kVectors;
    const int row = weight_row<Tile::kWarpColumns>(p, column, r);
    const int64_t byte = static_cast<int64_t>(step) * kStepBytes + v * 16;
    const bool exists = row < p.columns && byte < p.weight_row_bytes;
    const int64_t from = exists ? (static_cast<int64_t>(term) * p.columns + row) * p.weight_row_bytes + byte : 0;
    copy_bytes<16>(stage + vector_at(r, v), static_cast<const uint8_t*>(p.weight) + from, exists);
  }
}

// Half a step: 2 x 32 bytes of each row.
template <DType kType, typename Tile>
__device__ __forceinline__ void multiply_stage(Sum<kType> (&sums)[2][Tile::kWarpColumns / 2], const uint32_t (&operands)[2][2][4],
                                               uint32_t stage, int first_row, int half, int lane) {
  constexpr int kTiles = Tile::kWarpColumns / 8;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      // Matrices: the halves of 32 bytes of one tile, then of the next.
      uint32_t words[4];
      const int row = first_row + tile * 8 + lane / 16 * 8 + lane % 8;
      load_matrices(words, stage + vector_at(row, half * 4 + k * 2 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t b[2] = {words[2 * i], words[2 * i + 1]};
#pragma unroll
        for (int set = 0; set < 2; ++set) {
          auto& four = *reinterpret_cast<Sum<kType>(*)[4]>(&sums[set][4 * (tile + i)]);
          multiply_tile<kType>(four, operands[set][k], b);
        }
      }
    }
  }
}
#endif

template <DType kType, typename Tile>
__global__ void __launch_bounds__(WarpStages<Tile>::kThreads, Tile::kResident)
    project_ampere(const __grid_constant__ Projection p) {
#ifdef BTR_AMPERE
  using S = WarpStages<Tile>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, down = warp / Tile::kAcross, across = warp % Tile::kAcross;
  const uint32_t ring = shared_address(shared_memory());
  const Place<Tile> place(p, blockIdx.x);
  const int64_t rows[2] = {place.token + down * 32, place.token + down * 32 + 16};
  const int steps = steps_of<kType>(p), turns = p.terms * steps;
  const auto copy = [&](int turn) {
    if (turn < turns) {
      copy_stage<kType, Tile>(p, ring + turn % S::kCount * S::kBytes, place.column, p.terms - 1 - turn / steps, turn % steps);
    }
    commit_copies();  // of nothing, towards the end: so that the ones before can be waited for by their number
  };
  for (int turn = 0; turn < S::kCount - 1; ++turn) copy(turn);

  Sum<kType> sums[2][Tile::kWarpColumns / 2] = {};
  Signs<kType, 2> signs(p, rows, lane);
  signs.load(p, 0);
  for (int turn = 0; turn < turns; ++turn) {
    signs.take();
    signs.load(p, turn % steps + 1 < steps ? turn % steps + 1 : 0);
    wait_copies<S::kCount - 2>();
    __syncthreads();  // the stage has come, and nobody reads the one before it any more, which is copied to next
    copy(turn + S::kCount - 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t operands[2][2][4];
      signs.expand(half, lane, operands);
      multiply_stage<kType, Tile>(sums, operands, ring + turn % S::kCount * S::kBytes, across * Tile::kWarpColumns, half, lane);
    }
  }
  __syncthreads();
  auto* staged = reinterpret_cast<Sum<kType>*>(shared_memory() + warp * S::kStagedBytes);
  const int column = place.column + across * (p.gated ? Tile::kWarpColumns / 2 : Tile::kWarpColumns);
  finish(p, staged, sums, rows, column, lane);
#endif
}

template <DType kType, typename Tile>
int launch_ampere(const Projection& p, cudaStream_t stream) {
  const Shape shape{Place<Tile>::count(p), WarpStages<Tile>::kSharedBytes, WarpStages<Tile>::kThreads};
  return launch(project_ampere<kType, Tile>, shape, stream, p);
}

}  // namespace btr::cuda
