// The tiles that the kernels of unpack_matmul make, and which one a size gets.
#pragma once

#include <cstdint>

#include "cuda/grid.cuh"
#include "cuda/projection.cuh"

namespace btr::cuda {

// Hopper. kConsumers: warp groups that multiply; kSets: times 64 tokens that each has; kColumns: columns of the weight, 64 or 128.
// kResident blocks run on a processor at a time, and there multiply at about kRate of what large tiles reach: an estimate
// until it has been measured.
template <int kConsumers_, int kSets_, int kColumns_, int kResident_, int kRatePercent_>
struct Tile {
  static constexpr int kConsumers = kConsumers_, kSets = kSets_, kColumns = kColumns_, kResident = kResident_;
  static constexpr int kTokens = 64 * kConsumers * kSets, kRatePercent = kRatePercent_;
};
using LargeTile = Tile<2, 2, 128, 1, 100>;
using MiddleTile = Tile<2, 1, 128, 1, 90>;
using SmallTile = Tile<1, 1, 64, 2, 55>;

// Ampere: kDown x kAcross warps, each of 32 tokens and kWarpColumns columns.
template <int kDown_, int kAcross_, int kWarpColumns_, int kResident_, int kRatePercent_>
struct WarpTile {
  static constexpr int kDown = kDown_, kAcross = kAcross_, kWarpColumns = kWarpColumns_, kResident = kResident_;
  static constexpr int kTokens = 32 * kDown, kColumns = kAcross * kWarpColumns, kRatePercent = kRatePercent_;
};
using LargeWarpTile = WarpTile<4, 2, 64, 1, 100>;
using SmallWarpTile = WarpTile<2, 2, 32, 2, 70>;

// Where a tile is: tiles that run together share tokens, and the weight stays in L2.
template <typename Tile>
struct Place {
  int64_t token;
  int column;  // of the result

  __host__ __device__ static int columns_made(const Projection& p) {
    return p.gated ? Tile::kColumns / 2 : Tile::kColumns;
  }
  __host__ __device__ static int64_t count(const Projection& p) {
    return divide_up(p.m, Tile::kTokens) * divide_up(p.n, columns_made(p));
  }
  __device__ __forceinline__ Place(const Projection& p, int64_t tile) {
    const int across = static_cast<int>(divide_up(p.n, columns_made(p)));
    token = tile / across * Tile::kTokens;
    column = static_cast<int>(tile % across) * columns_made(p);
  }
};

// How long a tile's kernel takes, in no unit: rounds of as many blocks as the device holds, times what a block multiplies.
template <typename Tile>
double cost(const Projection& p, int64_t processors) {
  return static_cast<double>(divide_up(Place<Tile>::count(p), processors * Tile::kResident)) * Tile::kResident *
         Tile::kTokens * Tile::kColumns / Tile::kRatePercent;
}

}  // namespace btr::cuda
