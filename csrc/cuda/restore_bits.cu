// Packed bits brought to the device and expanded, in one pass: see launchers.h. The bits may lie in pinned host memory: the
// kernel then reads them over the bus, 512 bytes a warp, while others write what has arrived. Bound by the bus, or from
// device memory by writing.
#include <type_traits>

#include "cuda/bits.cuh"
#include "cuda/grid.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace btr::cuda {
namespace {

// What a warp reads at a time: 16 bytes a lane.
constexpr int kChunk = 512;

// w % 16 == 0, so that rows follow each other without pad bits and in whole vectors.
template <DType kType>
__global__ void __launch_bounds__(kThreads, 4)
    restore_vectors(const uint4* __restrict__ bits, int64_t bytes, int64_t w, const float* __restrict__ scale,
                    uint4* __restrict__ copy, uint4* __restrict__ out) {
  constexpr int K = kPerVector<kType>;  // channels of 16 bytes of out
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto* held = reinterpret_cast<uint4*>(shared_memory()) + warp * 32;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t chunk = static_cast<int64_t>(blockIdx.x) * kWarps + warp; chunk * kChunk < bytes; chunk += stride) {
    const int64_t piece = chunk * 32 + lane;
    uint4 loaded{};
    if (piece * 16 < bytes) {
      loaded = bits[piece];
      copy[piece] = loaded;
    }
    held[lane] = loaded;
    __syncwarp();
    const auto* byte = reinterpret_cast<const uint8_t*>(held);
    // The byte of the row that this lane's next vector begins in: 32 vectors further each time.
    int64_t place = (chunk * kChunk + lane * K / 8) % w;
    const int shift = K == 4 ? lane % 2 * 4 : 0;  // a float32 vector takes half a byte
#pragma unroll 4
    for (int j = 0; j < kChunk * 8 / K / 32; ++j) {
      const int mine = (j * 32 + lane) * K / 8;
      if (chunk * kChunk + mine < bytes) {
        const uint32_t field = byte[mine] >> shift;
        const float* scales = scale + place * 8 + shift;
        uint32_t words[4];
        if constexpr (K == 4) {
          const float4 s = *reinterpret_cast<const float4*>(scales);
          words[0] = float_to_bits(with_sign(s.x, field, 0)), words[1] = float_to_bits(with_sign(s.y, field, 1));
          words[2] = float_to_bits(with_sign(s.z, field, 2)), words[3] = float_to_bits(with_sign(s.w, field, 3));
        } else {
          const float4 s = *reinterpret_cast<const float4*>(scales), t = *reinterpret_cast<const float4*>(scales + 4);
          words[0] = word_of<kType>(with_sign(s.x, field, 0), with_sign(s.y, field, 1));
          words[1] = word_of<kType>(with_sign(s.z, field, 2), with_sign(s.w, field, 3));
          words[2] = word_of<kType>(with_sign(t.x, field, 4), with_sign(t.y, field, 5));
          words[3] = word_of<kType>(with_sign(t.z, field, 6), with_sign(t.w, field, 7));
        }
        out[chunk * (kChunk * 8 / K) + j * 32 + lane] = uint4{words[0], words[1], words[2], words[3]};
      }
      for (place += 32 * K / 8; place >= w;) place -= w;
    }
    __syncwarp();
  }
}

// Any d, any alignment: a warp takes 256 channels of a row, a lane a byte of them and one channel of each 32.
template <DType kType>
__global__ void __launch_bounds__(kThreads, 4)
    restore_rows(const uint8_t* __restrict__ bits, int64_t rows, int64_t d, const float* __restrict__ scale,
                 uint8_t* __restrict__ copy, void* __restrict__ all) {
  using storage = std::conditional_t<kType == DType::f32, uint32_t, uint16_t>;
  const int lane = threadIdx.x % 32;
  const int64_t w = divide_up(d, 8), chunks = divide_up(d, 256);
  auto* out = static_cast<storage*>(all);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; unit < rows * chunks; unit += stride) {
    const int64_t row = unit / chunks, first = (unit - row * chunks) * 256, byte = first / 8 + lane;
    uint32_t held = 0;
    if (byte < w) {
      held = bits[row * w + byte];
      copy[row * w + byte] = static_cast<uint8_t>(held);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int64_t c = first + j * 32 + lane;
      const uint32_t field = __shfl_sync(0xffffffffu, held, j * 4 + lane / 8) >> (lane % 8);
      if (c >= d) continue;
      const float value[1] = {with_sign(scale[c], field, 0)};
      out[row * d + c] = rounded<kType, storage>(value);
    }
  }
}

template <DType kType>
int restore(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, uint8_t* copy, void* out,
            cudaStream_t stream) {
  const int64_t w = bytes_for(d);
  if (d % 128 == 0 && aligned(bits, 16) && aligned(copy, 16) && aligned(out, 16) && aligned(scale, 16)) {
    return launch(restore_vectors<kType>, {blocks_for_warps(divide_up(rows * w, kChunk)), kWarps * kChunk}, stream,
                         reinterpret_cast<const uint4*>(bits), rows * w, w, scale, reinterpret_cast<uint4*>(copy),
                         static_cast<uint4*>(out));
  }
  return launch(restore_rows<kType>, blocks_for_warps(rows * divide_up(d, 256)), stream, bits, rows, d, scale, copy, out);
}

}  // namespace
}  // namespace btr::cuda

extern "C" int btr_cuda_restore_bits(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, uint8_t* copy,
                                     void* out, int dtype, cudaStream_t stream) {
  using btr::DType;
  if (rows <= 0 || d <= 0) return cudaSuccess;
  switch (static_cast<DType>(dtype)) {
    case DType::f32: return btr::cuda::restore<DType::f32>(bits, rows, d, scale, copy, out, stream);
    case DType::f16: return btr::cuda::restore<DType::f16>(bits, rows, d, scale, copy, out, stream);
    case DType::bf16: return btr::cuda::restore<DType::bf16>(bits, rows, d, scale, copy, out, stream);
    default: return cudaErrorInvalidValue;
  }
}
