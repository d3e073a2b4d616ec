#include "cuda/project_few.cuh"

namespace btr::cuda {
template int launch_few<DType::i8, false>(const Projection&, const float*, cudaStream_t);
}  // namespace btr::cuda
