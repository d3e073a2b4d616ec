// unpack_matmul and unpack_geglu: which kernel, which tile, and what has to be copied before: see launchers.h.
#include "cuda/grid.cuh"
#include "cuda/launchers.h"
#include "cuda/projection.cuh"
#include "cuda/tiles.cuh"
#include "cuda/weight_terms.cuh"

namespace btr::cuda {

// In project_hopper_<type>.cu, project_ampere_<type>.cu and project_few_<type>.cu.
template <DType kType, typename Tile>
int launch_hopper(const Projection& p, int64_t processors, cudaStream_t stream);
template <DType kType, typename Tile>
int launch_ampere(const Projection& p, cudaStream_t stream);
template <DType kStored, bool kSplit>
int launch_few(const Projection& p, const float* scale, cudaStream_t stream);

namespace {

// BtrProjection::tile.
enum TileChoice { kChosen, kLarge, kMiddle, kSmall, kFew };

// Up to this many tokens the weight is read about once, by kernels that are bound by that.
constexpr int64_t kMostFew = 64;

// What stands between the arguments and the kernel.
struct Plan {
  Projection projection;  // its pointers are those of the arguments
  DType stored, type;     // as the weight comes, and as it is multiplied
  bool few, pads_bits, pads_weight, splits_weight;
  int64_t bits_bytes, weight_bytes;  // of scratch memory

  explicit Plan(const BtrProjection& a) {
    stored = static_cast<DType>(a.weight_dtype);
    const auto out_type = static_cast<DType>(a.out_dtype);
    const int columns = static_cast<int>(a.gated ? 2 * a.n : a.n);
    const int64_t row_bytes = bytes_for(a.d);
    few = a.tile == kFew || (a.tile == kChosen && a.m <= kMostFew);
    const bool is_sum = stored == DType::f32 || a.scale;  // of bfloat16 terms; those of few tokens are made in registers
    splits_weight = is_sum && !few;
    type = splits_weight ? DType::bf16 : stored;
    // Three are exact; two leave an error below that of rounding the result to bfloat16.
    const int terms = !splits_weight ? 1 : out_type == DType::bf16 ? 2 : 3;
    pads_bits = row_bytes % 8 != 0 || !aligned(a.bits, 8);
    pads_weight = !splits_weight && (a.d * size_of(type) % 16 != 0 || !aligned(a.weight, 16));
    const int64_t weight_row = padded_row(a.d * size_of(type));
    bits_bytes = pads_bits ? a.m * padded_row(row_bytes) : 0;
    weight_bytes = splits_weight || pads_weight ? int64_t{terms} * columns * weight_row : 0;
    projection = {a.bits,
                  a.weight,
                  a.factors,
                  a.bias,
                  a.token_scale,
                  a.out,
                  a.m,
                  pads_bits ? padded_row(row_bytes) : row_bytes,
                  weight_row,
                  static_cast<int>(a.n),
                  columns,
                  static_cast<int>(a.d),
                  terms,
                  a.gated != 0,
                  out_type};
  }

  // Makes the copies, and has the projection point to them.
  int prepare(const BtrProjection& a, void* scratch, cudaStream_t stream) {
    auto* memory = static_cast<uint8_t*>(scratch);
    if (pads_bits) {
      const int error = pad_rows(a.bits, a.m, bytes_for(a.d), memory, stream);
      if (error != cudaSuccess) return error;
      projection.bits = memory;
      memory += bits_bytes;
    }
    int error = cudaSuccess;
    if (splits_weight) {
      error = split_into_terms(a.weight, stored, a.scale, projection.columns, a.d, projection.terms, memory, stream);
    } else if (pads_weight) {
      error = pad_rows(a.weight, projection.columns, a.d * size_of(type), memory, stream);
    }
    if (weight_bytes) projection.weight = memory;
    return error;
  }
};

// The major compute capability of the current device, 0 if it cannot be asked.
int capability() {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess ? major : 0;
}

template <DType kType>
int project_on_hopper(const Projection& p, int tile, cudaStream_t stream) {
  const int64_t processors = multiprocessors();
  if (tile == kChosen) {
    const double large = cost<LargeTile>(p, processors), middle = cost<MiddleTile>(p, processors),
                 small = cost<SmallTile>(p, processors);
    tile = large <= middle && large <= small ? kLarge : middle <= small ? kMiddle : kSmall;
  }
  switch (tile) {
    case kLarge: return launch_hopper<kType, LargeTile>(p, processors, stream);
    case kMiddle: return launch_hopper<kType, MiddleTile>(p, processors, stream);
    case kSmall: return launch_hopper<kType, SmallTile>(p, processors, stream);
    default: return cudaErrorInvalidValue;
  }
}

template <DType kType>
int project_on_ampere(const Projection& p, int tile, cudaStream_t stream) {
  if (tile == kChosen) {
    const int64_t processors = multiprocessors();
    tile = cost<LargeWarpTile>(p, processors) <= cost<SmallWarpTile>(p, processors) ? kLarge : kSmall;
  }
  switch (tile) {
    case kLarge: return launch_ampere<kType, LargeWarpTile>(p, stream);
    case kSmall: return launch_ampere<kType, SmallWarpTile>(p, stream);
    default: return cudaErrorInvalidValue;
  }
}

int project_many(const Plan& plan, int tile, cudaStream_t stream) {
  const Projection& p = plan.projection;
  if (capability() == 9) {
    switch (plan.type) {
      case DType::bf16: return project_on_hopper<DType::bf16>(p, tile, stream);
      case DType::f16: return project_on_hopper<DType::f16>(p, tile, stream);
      case DType::i8: return project_on_hopper<DType::i8>(p, tile, stream);
      case DType::e4m3: return project_on_hopper<DType::e4m3>(p, tile, stream);
      default: return cudaErrorInvalidValue;
    }
  }
  switch (plan.type) {
    case DType::bf16: return project_on_ampere<DType::bf16>(p, tile, stream);
    case DType::f16: return project_on_ampere<DType::f16>(p, tile, stream);
    case DType::i8: return project_on_ampere<DType::i8>(p, tile, stream);
    default: return cudaErrorInvalidValue;
  }
}

int project_few(const Plan& plan, const float* scale, cudaStream_t stream) {
  const Projection& p = plan.projection;
  if (p.m > kMostFew) return cudaErrorInvalidValue;
  switch (plan.stored) {
    case DType::f32: return launch_few<DType::f32, true>(p, scale, stream);
    case DType::bf16:
      return scale ? launch_few<DType::bf16, true>(p, scale, stream) : launch_few<DType::bf16, false>(p, scale, stream);
    case DType::f16:
      return scale ? launch_few<DType::f16, true>(p, scale, stream) : launch_few<DType::f16, false>(p, scale, stream);
    case DType::i8: return launch_few<DType::i8, false>(p, scale, stream);
    case DType::e4m3: return launch_few<DType::e4m3, false>(p, scale, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace btr::cuda

extern "C" int64_t btr_cuda_unpack_matmul_scratch(const BtrProjection* arguments) {
  const btr::cuda::Plan plan(*arguments);
  return plan.bits_bytes + plan.weight_bytes;
}

extern "C" int btr_cuda_unpack_matmul(const BtrProjection* arguments, void* scratch, cudaStream_t stream) {
  using btr::DType;
  const BtrProjection& a = *arguments;
  const auto out_type = static_cast<DType>(a.out_dtype);
  if (out_type != DType::f32 && out_type != DType::f16 && out_type != DType::bf16) return cudaErrorInvalidValue;
  const bool bytes = a.weight_dtype == static_cast<int>(DType::i8) || a.weight_dtype == static_cast<int>(DType::e4m3);
  if (a.n > (1 << 30) || a.d > (1 << 30) || (bytes && a.scale)) return cudaErrorInvalidValue;
  if (a.weight_dtype == static_cast<int>(DType::e4m3) && btr::cuda::capability() != 9) return cudaErrorNotSupported;
  if (a.m <= 0 || a.n <= 0 || a.d <= 0) return cudaSuccess;
  btr::cuda::Plan plan(a);
  const int error = plan.prepare(a, scratch, stream);
  if (error != cudaSuccess) return error;
  return plan.few ? btr::cuda::project_few(plan, a.scale, stream) : btr::cuda::project_many(plan, a.tile, stream);
}
