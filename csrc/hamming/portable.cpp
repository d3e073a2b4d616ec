// hamming.h compiled for plain C++.
#define BTR_ISA_NAMESPACE portable
#include "hamming/generic.inl"

namespace btr {

extern const HammingKernels hamming_portable{portable::distance_matrix, portable::topk};

}  // namespace btr
