// matmul.h compiled for AVX-512.
#define BTR_ISA_NAMESPACE avx512
#include "matmul/generic.inl"

namespace btr {

extern const MatmulKernels matmul_avx512{avx512::run_matmul, avx512::run_linear};

}  // namespace btr
