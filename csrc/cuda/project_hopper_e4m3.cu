#include "cuda/project_hopper.cuh"

namespace btr::cuda {
template int launch_hopper<DType::e4m3, LargeTile>(const Projection&, int64_t, cudaStream_t);
template int launch_hopper<DType::e4m3, MiddleTile>(const Projection&, int64_t, cudaStream_t);
template int launch_hopper<DType::e4m3, SmallTile>(const Projection&, int64_t, cudaStream_t);
}  // namespace btr::cuda
