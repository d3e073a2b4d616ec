// hamming.h compiled for NEON.
#define BTR_ISA_NAMESPACE neon
#include "hamming/generic.inl"

namespace btr {

extern const HammingKernels hamming_neon{neon::distance_matrix, neon::topk};

}  // namespace btr
