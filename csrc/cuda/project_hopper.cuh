// unpack_matmul for many tokens on Hopper. Bound by the tensor cores: 2 m columns d operations at their rate.
//
// A block makes tiles (tiles.cuh), one after the other: the grid is as large as the device, not as the result. One thread of
// the last warp group, the producer, has the tensor memory accelerator copy the weight into a ring of stages, kColumns rows
// of 128 bytes each; it runs ahead into the next tile while the others finish one. The other warp groups, the consumers,
// expand signs in registers while the tensor cores multiply the ones before. All of a block share the stages, so a byte of
// the weight that comes from L2 serves as many multiplications as the tile has tokens; of the tokens there are only bits,
// which each thread reads for itself.
#pragma once

#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/projection.cuh"
#include "cuda/signs.cuh"
#include "cuda/tensor_map.cuh"
#include "cuda/tiles.cuh"
#include "cuda/wgmma.cuh"

namespace btr::cuda {

template <typename Tile>
struct Stages {
  static constexpr int kThreads = 128 * (Tile::kConsumers + 1);
  static constexpr int kBytes = Tile::kColumns * kBoxBytes;  // of a stage
  // As many as hold the weight of over a thousand clock cycles of multiplications, several times what L2 takes to answer.
  static constexpr int kCount = Tile::kSets == 2 ? 8 : 6;
  // Stages start at a multiple of 1024 bytes; two barriers of 8 bytes each follow them, and what `finish` takes.
  static constexpr int kRingBytes = kCount * (kBytes + 16);
  static constexpr int kStagedBytes = 16 * kStagedRow<Tile::kColumns> * 4;
  static constexpr int kSharedBytes = 1024 + kRingBytes + 4 * Tile::kConsumers * kStagedBytes;
  // Two sets take more than the 168 registers that 384 threads have each.
  static constexpr bool kMovesRegisters = Tile::kSets == 2;
};

template <typename Tile>
struct Ring {
  using S = Stages<Tile>;
  uint32_t stages;  // address of the first
  int stage = 0, parity = 0;

  __device__ __forceinline__ uint32_t data() const { return stages + stage * S::kBytes; }
  // Of a stage: that its bytes have come, and that all warps of the consumers have multiplied them.
  __device__ __forceinline__ uint32_t full() const { return stages + S::kCount * S::kBytes + 8 * stage; }
  __device__ __forceinline__ uint32_t empty() const { return full() + 8 * S::kCount; }
  __device__ __forceinline__ void next() {
    if (++stage == S::kCount) stage = 0, parity ^= 1;
  }
};

#ifdef BTR_HOPPER
template <DType kType, typename Tile>
__device__ __forceinline__ void produce(const TensorMap& weight, const Projection& p, Ring<Tile> ring) {
  const int steps = steps_of<kType>(p);
  prefetch_map(weight);
  for (int64_t tile = blockIdx.x; tile < Place<Tile>::count(p); tile += gridDim.x) {
    const Place<Tile> place(p, tile);
    const int upper = weight_row<Tile::kColumns>(p, place.column, 0);
    const int lower = weight_row<Tile::kColumns>(p, place.column, Tile::kColumns / 2);
    for (int term = p.terms - 1; term >= 0; --term) {
      for (int step = 0; step < steps; ++step) {
        wait_for(ring.empty(), ring.parity ^ 1);  // at first there is no phase to wait for
        arrive_expecting(ring.full(), Stages<Tile>::kBytes);
        const int channel = step * kStepChannels<kType>;
        copy_box(ring.data(), weight, ring.full(), channel, upper, term);
        copy_box(ring.data() + Stages<Tile>::kBytes / 2, weight, ring.full(), channel, lower, term);
        ring.next();
      }
    }
  }
}

template <DType kType, typename Tile>
__device__ __forceinline__ void multiply_half(Sum<kType> (&sums)[Tile::kSets][Tile::kColumns / 2],
                                              const uint32_t (&operands)[Tile::kSets][2][4], uint64_t weight, bool adding) {
  open_multiplications();
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int set = 0; set < Tile::kSets; ++set) {
      multiply_rows<kType>(sums[set], operands[set][k], advanced(weight, 32 * k), adding || k > 0);
    }
  }
  commit_multiplications();
}

template <DType kType, typename Tile>
__device__ __forceinline__ void consume(const Projection& p, Ring<Tile> ring, char* staged) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, steps = steps_of<kType>(p);
  for (int64_t tile = blockIdx.x; tile < Place<Tile>::count(p); tile += gridDim.x) {
    const Place<Tile> place(p, tile);
    int64_t rows[Tile::kSets];
#pragma unroll
    for (int set = 0; set < Tile::kSets; ++set) {
      rows[set] = place.token + (warp / 4 * Tile::kSets + set) * 64 + warp % 4 * 16;
    }
    Sum<kType> sums[Tile::kSets][Tile::kColumns / 2];
    uint32_t early[Tile::kSets][2][4], late[Tile::kSets][2][4];  // operands of the halves of a step
    Signs<kType, Tile::kSets> signs(p, rows, lane);
    signs.load(p, 0);
    signs.take();
    signs.expand(0, lane, early);
    uint32_t read = 0;  // the barrier of the stage before
    for (int term = p.terms - 1; term >= 0; --term) {
      for (int step = 0; step < steps; ++step) {
        signs.load(p, step + 1 < steps ? step + 1 : 0);
        wait_for(ring.full(), ring.parity);
        const uint64_t weight = operand_at(ring.data());
        multiply_half<kType, Tile>(sums, early, weight, read != 0);
        wait_multiplications<1>();  // all of the step before
        if (read != 0 && lane == 0) arrive(read);
        signs.expand(1, lane, late);
        multiply_half<kType, Tile>(sums, late, advanced(weight, 64), true);
        wait_multiplications<1>();  // this step's first half
        signs.take();
        signs.expand(0, lane, early);
        read = ring.empty();
        ring.next();
      }
    }
    wait_multiplications<0>();
    if (lane == 0) arrive(read);
    finish(p, reinterpret_cast<Sum<kType>*>(staged + warp * Stages<Tile>::kStagedBytes), sums, rows, place.column, lane);
  }
}
#endif

template <DType kType, typename Tile>
__global__ void __launch_bounds__(Stages<Tile>::kThreads, Tile::kResident)
    project_hopper(const __grid_constant__ TensorMap weight, const __grid_constant__ Projection p) {
#ifdef BTR_HOPPER
  const uint32_t unaligned = shared_address(shared_memory());
  Ring<Tile> ring{(unaligned + 1023) / 1024 * 1024};
  if (threadIdx.x == 0) {
    Ring<Tile> each = ring;
    for (int i = 0; i < Stages<Tile>::kCount; ++i, each.next()) {
      initialise_barrier(each.full(), 1);
      initialise_barrier(each.empty(), 4 * Tile::kConsumers);
    }
    publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x / 128 == Tile::kConsumers) {
    if constexpr (Stages<Tile>::kMovesRegisters) give_registers<24>();
    if (threadIdx.x % 128 == 0) produce<kType>(weight, p, ring);
  } else {
    if constexpr (Stages<Tile>::kMovesRegisters) take_registers<240>();
    consume<kType>(p, ring, shared_memory() + (ring.stages - unaligned) + Stages<Tile>::kRingBytes);
  }
#else
  __trap();  // compute capability 9 with machine code of another
#endif
}

template <DType kType, typename Tile>
int launch_hopper(const Projection& p, int64_t processors, cudaStream_t stream) {
  TensorMap map;
  const int error = make_tensor_map(map, p.weight, static_cast<int>(size_of(kType)), p.d, p.columns, p.terms,
                                    p.weight_row_bytes, Tile::kColumns / 2);
  if (error != cudaSuccess) return error;
  const int64_t tiles = Place<Tile>::count(p), resident = processors * Tile::kResident;
  const Shape shape{tiles < resident ? tiles : resident, Stages<Tile>::kSharedBytes, Stages<Tile>::kThreads};
  return launch(project_hopper<kType, Tile>, shape, stream, map, p);
}

}  // namespace btr::cuda
