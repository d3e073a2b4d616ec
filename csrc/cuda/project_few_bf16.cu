#include "cuda/project_few.cuh"

namespace btr::cuda {
template int launch_few<DType::bf16, false>(const Projection&, const float*, cudaStream_t);
template int launch_few<DType::bf16, true>(const Projection&, const float*, cudaStream_t);
}  // namespace btr::cuda
