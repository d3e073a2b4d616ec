#include "cuda/project_hopper.cuh"

namespace btr::cuda {
template int launch_hopper<DType::i8, LargeTile>(const Projection&, int64_t, cudaStream_t);
template int launch_hopper<DType::i8, MiddleTile>(const Projection&, int64_t, cudaStream_t);
template int launch_hopper<DType::i8, SmallTile>(const Projection&, int64_t, cudaStream_t);
}  // namespace btr::cuda
