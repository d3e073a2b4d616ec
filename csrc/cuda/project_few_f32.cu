#include "cuda/project_few.cuh"

namespace btr::cuda {
template int launch_few<DType::f32, true>(const Projection&, const float*, cudaStream_t);
}  // namespace btr::cuda
