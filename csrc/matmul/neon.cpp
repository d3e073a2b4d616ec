// matmul.h compiled for NEON.
#define BTR_ISA_NAMESPACE neon
#include "matmul/generic.inl"

namespace btr {

extern const MatmulKernels matmul_neon{neon::run_matmul, neon::run_linear};

}  // namespace btr
