#include "cuda/project_hopper.cuh"

namespace btr::cuda {
template int launch_hopper<DType::bf16, LargeTile>(const Projection&, int64_t, cudaStream_t);
template int launch_hopper<DType::bf16, MiddleTile>(const Projection&, int64_t, cudaStream_t);
template int launch_hopper<DType::bf16, SmallTile>(const Projection&, int64_t, cudaStream_t);
}  // namespace btr::cuda
