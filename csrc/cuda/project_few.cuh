// unpack_matmul for up to 64 tokens. Bound by reading the weight, once.
//
// The weight is the first operand of the tensor cores: tokens are then padded to 8, not to 64, and what a lane expands of
// a token serves 16 columns or 32. Each lane multiplies the 16-byte vectors that it copied itself, four lanes a row: the
// channels of a lane follow each other, and the signs are expanded in that order (expand_vector). So lanes wait for nobody,
// only for memory, several steps ahead of them. The warps of a block take turns along the channels of the same columns, and
// add up what they found in shared memory.
#pragma once

#include "cuda/expand.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/projection.cuh"
#include "cuda/ptx.cuh"

namespace btr::cuda {

// kTokenTiles: times 8 tokens; kSplit: the weight is split into terms, which takes registers.
template <int kTokenTiles_, bool kSplit>
struct FewTile {
  static constexpr int kTokenTiles = kTokenTiles_;
  // More tokens: each sign serves twice as many columns, and there are half as many warps to add up.
  static constexpr int kSets = kTokenTiles <= 2 || kSplit ? 1 : 2, kWarps = kTokenTiles <= 2 ? 8 : 4;
  static constexpr int kTokens = 8 * kTokenTiles, kColumns = 16 * kSets;
  static constexpr int kRow = kColumns + 1;  // words from one token to the next in shared memory
  static constexpr int kSumBytes = kWarps * kTokens * kRow * 4;
};

// A weight as it is stored: kStored, multiplied as kType, as the sum of kTerms matrices.
template <DType kStored, bool kSplit>
struct FewWeight {
  static constexpr int kTerms = kSplit ? 3 : 1;
  static constexpr DType kType = kSplit ? DType::bf16 : kStored == DType::e4m3 ? DType::f16 : kStored;
  // Vectors of a lane in a step, its channels, and the 32-byte operands that the four lanes of a row fill with them.
  static constexpr int kVectors = kStored == DType::f32 ? 2 : 1;
  static constexpr int kChannels = kVectors * kPerVector<kStored>, kOperands = kStored == DType::e4m3 ? 4 : 2;
  // Bytes of bits of a token in a step, of the four lanes together.
  static constexpr int kBitBytes = kChannels / 2;
};

// What the lanes of a block have under way: kCount steps, of each the vectors of all lanes one after the other, and the bits.
template <typename Weight, typename Tile>
struct FewStages {
  static constexpr int kCount = 4, kLanes = 32 * Tile::kWarps;
  static constexpr int kVectors = 2 * Tile::kSets * Weight::kVectors;  // of a lane
  static constexpr int kVectorBytes = kVectors * kLanes * 16;
  static constexpr int kBytes = kVectorBytes + Tile::kTokenTiles * kLanes * Weight::kBitBytes;
  static constexpr int kSharedBytes = kCount * kBytes > Tile::kSumBytes ? kCount * kBytes : Tile::kSumBytes;
};

// A vector of a row to words of operands, two of each: the vector itself, or half of it as numbers twice as long.
template <DType kStored>
__device__ __forceinline__ void operand_words(const uint4& vector, int half, uint32_t (&words)[4]) {
  if constexpr (kStored == DType::e4m3) {
    const uint32_t first = half ? vector.z : vector.x, second = half ? vector.w : vector.y;
    words[0] = halves_of(static_cast<uint16_t>(first)), words[1] = halves_of(static_cast<uint16_t>(first >> 16));
    words[2] = halves_of(static_cast<uint16_t>(second)), words[3] = halves_of(static_cast<uint16_t>(second >> 16));
  } else {
    words[0] = vector.x, words[1] = vector.y, words[2] = vector.z, words[3] = vector.w;
  }
}

// The next term of each value.
__device__ __forceinline__ void take_term(float (&values)[8], uint32_t (&words)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = next_term(values[2 * i]) >> 16 | next_term(values[2 * i + 1]);
}

template <DType kStored, bool kSplit, typename Tile>
__global__ void __launch_bounds__(32 * Tile::kWarps)
    project_few(const __grid_constant__ Projection p, const float* __restrict__ scale) {
  using Weight = FewWeight<kStored, kSplit>;
  using Stages = FewStages<Weight, Tile>;
  using T = Sum<Weight::kType>;
  constexpr int kSets = Tile::kSets, kTiles = Tile::kTokenTiles, kVectors = Weight::kVectors;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int made = p.gated ? Tile::kColumns / 2 : Tile::kColumns, column = blockIdx.x * made;

  const uint8_t* rows[2 * kSets];
  bool row_exists[2 * kSets];
#pragma unroll
  for (int r = 0; r < 2 * kSets; ++r) {
    const int row = weight_row<16>(p, column, 8 * r + g);
    row_exists[r] = row < p.columns;
    rows[r] = static_cast<const uint8_t*>(p.weight) + (row_exists[r] ? row * p.weight_row_bytes : 0);
  }
  const uint32_t ring = shared_address(shared_memory());
  const auto vector_at = [&](int stage, int r, int v) {
    return stage * Stages::kBytes + ((r * kVectors + v) * Stages::kLanes + static_cast<int>(threadIdx.x)) * 16;
  };
  const auto bits_at = [&](int stage, int tile) {
    return stage * Stages::kBytes + Stages::kVectorBytes +
           (tile * Stages::kLanes + static_cast<int>(threadIdx.x)) * Weight::kBitBytes;
  };
  const auto copy = [&](int stage, int step) {
#pragma unroll
    for (int r = 0; r < 2 * kSets; ++r) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int64_t byte = ((static_cast<int64_t>(step) * kVectors + v) * 4 + t) * 16;  // the four of a row: 64 bytes
        const bool exists = row_exists[r] && byte < p.weight_row_bytes;
        copy_bytes<16>(ring + vector_at(stage, r, v), rows[r] + (exists ? byte : 0), exists);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int64_t byte = static_cast<int64_t>(step) * Weight::kBitBytes, token = 8 * tile + g;
      const bool exists = token < p.m && byte < p.row_bytes;
      const uint8_t* from = p.bits + (exists ? token * p.row_bytes + byte : 0);
      copy_bytes<Weight::kBitBytes>(ring + bits_at(stage, tile), from, exists);
    }
    commit_copies();
  };

  T sums[kSets][kTiles][4] = {};
  const int steps = static_cast<int>(divide_up(p.weight_row_bytes, 64 * kVectors));
  for (int ahead = 0; ahead < Stages::kCount; ++ahead) copy(ahead, warp + ahead * Tile::kWarps);
  int stage = 0;
  for (int step = warp; step < steps; step += Tile::kWarps) {
    wait_copies<Stages::kCount - 1>();
    uint4 vectors[kSets][2][kVectors];
    uint32_t bits[kTiles];  // of this lane, lowest
#pragma unroll
    for (int r = 0; r < 2 * kSets; ++r) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        vectors[r / 2][r % 2][v] = *reinterpret_cast<const uint4*>(shared_memory() + vector_at(stage, r, v));
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const auto* of_row = shared_memory() + bits_at(stage, tile);
      if constexpr (kVectors == 2) {  // four channels of each vector
        const uint32_t word = *reinterpret_cast<const uint32_t*>(of_row) >> 4 * t;
        bits[tile] = (word & 15) | (word >> 12 & 0xf0);
      } else if constexpr (Weight::kBitBytes == 4) {
        bits[tile] = reinterpret_cast<const uint8_t*>(of_row)[t];
      } else {
        bits[tile] = reinterpret_cast<const uint16_t*>(of_row)[t];
      }
    }
    copy(stage, step + Stages::kCount * Tile::kWarps);
    stage = (stage + 1) % Stages::kCount;
#pragma unroll
    for (int pair = 0; pair < Weight::kOperands / 2; ++pair) {  // of operands
      uint32_t signs[kTiles][4];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) expand_vector<Weight::kType>(bits[tile] >> 8 * pair, signs[tile]);
      const auto multiply_pair = [&](T(&into)[kTiles][4], const uint32_t(&words)[2][4]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t a[4] = {words[0][2 * i], words[1][2 * i], words[0][2 * i + 1], words[1][2 * i + 1]};
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            const uint32_t b[2] = {signs[tile][2 * i], signs[tile][2 * i + 1]};
            multiply_tile<Weight::kType>(into[tile], a, b);
          }
        }
      };
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        uint32_t words[2][4];
        if constexpr (!kSplit) {
#pragma unroll
          for (int half = 0; half < 2; ++half) operand_words<kStored>(vectors[set][half][0], pair, words[half]);
          multiply_pair(sums[set], words);
        } else {
          float values[2][8];
          constexpr int kInVector = 8 / kVectors;
          const int64_t channel = static_cast<int64_t>(step) * 32 + t * kInVector;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
              const int64_t at = channel + c % kInVector + c / kInVector * 16;
              values[half][c] = element<kStored>(vectors[set][half][c / kInVector], c % kInVector);
              if (scale && at < p.d) values[half][c] = multiply(values[half][c], scale[at]);
            }
          }
          // A step's sum is added to the others outside of the tensor cores, which cut off what they add to a large one.
          T of_step[kTiles][4] = {};
#pragma unroll
          for (int term = 0; term < Weight::kTerms; ++term) {
#pragma unroll
            for (int half = 0; half < 2; ++half) take_term(values[half], words[half]);
            multiply_pair(of_step, words);
          }
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[set][tile][i] += of_step[tile][i];
          }
        }
      }
    }
  }
  wait_copies<0>();
  __syncthreads();  // what was under way has the place of the sums

  // Columns of the weight are rows of the sums.
  T* staged = reinterpret_cast<T*>(shared_memory());
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * tile + 2 * t + i % 2;
        staged[(warp * Tile::kTokens + token) * Tile::kRow + 16 * set + i / 2 * 8 + g] = sums[set][tile][i];
      }
    }
  }
  __syncthreads();
  const auto result = [&](int token, int c, int row_of_weight) {
    T sum = 0;
    for (int w = 0; w < Tile::kWarps; ++w) sum += staged[(w * Tile::kTokens + token) * Tile::kRow + c];
    const float token_scale = p.token_scale ? p.token_scale[token] : 1.0f;
    return finished(static_cast<float>(sum), column_of(p, row_of_weight), token_scale);
  };
  for (int i = threadIdx.x; i < made * p.m; i += 32 * Tile::kWarps) {
    const int token = i / made, c = i % made;
    if (column + c >= p.n) continue;
    // Gated, the two factors of a column are 8 apart.
    const int gate = c / 8 * 16 + c % 8;
    const float y = p.gated ? gelu(result(token, gate, column + c)) * result(token, gate + 8, column + c + p.n)
                            : result(token, c, column + c);
    const int64_t at = static_cast<int64_t>(token) * p.n + column + c;
    if (p.out_type == DType::f32) {
      static_cast<float*>(p.out)[at] = y;
    } else {
      const uint32_t word = p.out_type == DType::bf16 ? word_of<DType::bf16>(y, 0.0f) : word_of<DType::f16>(y, 0.0f);
      static_cast<uint16_t*>(p.out)[at] = static_cast<uint16_t>(word);
    }
  }
}

template <DType kStored, bool kSplit>
int launch_few(const Projection& p, const float* scale, cudaStream_t stream) {
  const auto run = [&](auto tile) {
    using Tile = decltype(tile);
    const int made = p.gated ? Tile::kColumns / 2 : Tile::kColumns;
    const Shape shape{divide_up(p.n, made), FewStages<FewWeight<kStored, kSplit>, Tile>::kSharedBytes, 32 * Tile::kWarps};
    return launch(project_few<kStored, kSplit, Tile>, shape, stream, p, scale);
  };
  if (p.m <= 8) return run(FewTile<1, kSplit>());
  if (p.m <= 16) return run(FewTile<2, kSplit>());
  if (p.m <= 32) return run(FewTile<4, kSplit>());
  return run(FewTile<8, kSplit>());
}

}  // namespace btr::cuda
