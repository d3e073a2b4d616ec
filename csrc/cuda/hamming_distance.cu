// All pairs of Hamming distances: see launchers.h. Bound by writing them: a pair of 768 bits takes the tensor cores 3/128
// of an instruction, and 4 bytes of memory.
#include "cuda/binary_tile.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace btr::cuda {
namespace {

// A block keeps 64 rows of a for up to this many tiles of 64 rows of b.
constexpr int64_t kMostTiles = 16;

// Blocks are numbered by batch, rows of a, columns. With `kVectors` n is a multiple of 4 and out aligned to 16 bytes.
template <int kAlignment, bool kVectors>
__global__ void __launch_bounds__(kThreads, 3)
    hamming_tiles(const uint8_t* __restrict__ a, const uint8_t* __restrict__ b, int64_t m, int64_t n, int64_t w,
                  int64_t tiles_each, int32_t* __restrict__ out) {
  auto& memory = *reinterpret_cast<TileMemory*>(shared_memory());
  const int64_t blocks_m = divide_up(m, kTileRows), tiles_n = divide_up(n, kTileRows);
  const int64_t blocks_n = divide_up(tiles_n, tiles_each);
  const int64_t item = blockIdx.x / (blocks_m * blocks_n), block = blockIdx.x % (blocks_m * blocks_n);
  const int64_t first_row = block / blocks_n * kTileRows, first_column = block % blocks_n * tiles_each * kTileRows;
  // From here on rows and columns are those of the block: few enough for 32 bits.
  const int rows = static_cast<int>(m - first_row < kTileRows ? m - first_row : kTileRows);
  const int64_t left = n - first_column, most = tiles_each * kTileRows;
  const int columns = static_cast<int>(left < most ? left : most);
  a += (item * m + first_row) * w, b += (item * n + first_column) * w;
  out += (item * m + first_row) * n + first_column;

  const auto row_a = [&](int i) { return i < rows ? a + i * w : nullptr; };
  const auto row_b = [&](int tile, int i) {
    const int row = tile * kTileRows + i;
    return row < columns ? b + row * w : nullptr;
  };
  const int tiles = static_cast<int>(divide_up(columns, kTileRows));
  walk_tiles<kAlignment>(memory, w, tiles, row_a, row_b, [&](int tile, const Counts& counts) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = Counts::row(half);
      const int32_t ones_a = memory.ones_a[row];
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const int column = tile * kTileRows + Counts::column(group);
        const int4 ones_b = *reinterpret_cast<const int4*>(memory.ones_b + Counts::column(group));
        const int32_t distances[4] = {ones_a + ones_b.x - 2 * counts.at(half, group, 0),
                                      ones_a + ones_b.y - 2 * counts.at(half, group, 1),
                                      ones_a + ones_b.z - 2 * counts.at(half, group, 2),
                                      ones_a + ones_b.w - 2 * counts.at(half, group, 3)};
        if (row >= rows) continue;
        int32_t* place = out + row * n + column;
        if constexpr (kVectors) {
          if (column < columns) {
            __stcg(reinterpret_cast<int4*>(place), int4{distances[0], distances[1], distances[2], distances[3]});
          }
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (column + i < columns) place[i] = distances[i];
          }
        }
      }
    }
  });
}

template <int kAlignment>
int distances(const uint8_t* a, const uint8_t* b, int64_t batch, int64_t m, int64_t n, int64_t w, int32_t* out,
              cudaStream_t stream) {
  const int64_t tiles_n = divide_up(n, kTileRows), tiles = batch * divide_up(m, kTileRows) * tiles_n;
  // Several blocks a processor come first, then fewer loads of a.
  const int64_t spare = tiles / (multiprocessors() * 8), fitting = spare < 1 ? 1 : spare < kMostTiles ? spare : kMostTiles;
  const int64_t tiles_each = fitting < tiles_n ? fitting : tiles_n;
  const int64_t blocks = batch * divide_up(m, kTileRows) * divide_up(tiles_n, tiles_each);
  if (n % 4 == 0 && aligned(out, 16)) {
    return launch(hamming_tiles<kAlignment, true>, {blocks, sizeof(TileMemory)}, stream, a, b, m, n, w, tiles_each, out);
  }
  return launch(hamming_tiles<kAlignment, false>, {blocks, sizeof(TileMemory)}, stream, a, b, m, n, w, tiles_each, out);
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_hamming_distance(const uint8_t* a, const uint8_t* b, int64_t batch, int64_t m, int64_t n, int64_t w,
                                         int32_t* out, cudaStream_t stream) {
  using namespace btr::cuda;
  if (batch <= 0 || m <= 0 || n <= 0 || w <= 0) return cudaSuccess;
  const int alignment_a = row_alignment(a, w), alignment_b = row_alignment(b, w);
  switch (alignment_a < alignment_b ? alignment_a : alignment_b) {
    case 16: return distances<16>(a, b, batch, m, n, w, out, stream);
    case 4: return distances<4>(a, b, batch, m, n, w, out, stream);
    default: return distances<1>(a, b, batch, m, n, w, out, stream);
  }
}
