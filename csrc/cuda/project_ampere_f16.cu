#include "cuda/project_ampere.cuh"

namespace btr::cuda {
template int launch_ampere<DType::f16, LargeWarpTile>(const Projection&, cudaStream_t);
template int launch_ampere<DType::f16, SmallWarpTile>(const Projection&, cudaStream_t);
}  // namespace btr::cuda
