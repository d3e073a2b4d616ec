// matmul.h compiled for plain C++.
#define BTR_ISA_NAMESPACE portable
#include "matmul/generic.inl"

namespace btr {

extern const MatmulKernels matmul_portable{portable::run_matmul, portable::run_linear};

}  // namespace btr
