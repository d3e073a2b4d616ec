// matmul.h compiled for AVX2 and FMA.
#define BTR_ISA_NAMESPACE avx2
#include "matmul/generic.inl"

namespace btr {

extern const MatmulKernels matmul_avx2{avx2::run_matmul, avx2::run_linear};

}  // namespace btr
