#include "cuda/project_few.cuh"

namespace btr::cuda {
template int launch_few<DType::e4m3, false>(const Projection&, const float*, cudaStream_t);
}  // namespace btr::cuda
