// hamming.h compiled for AVX2 and POPCNT.
#define BTR_ISA_NAMESPACE avx2
#include "hamming/generic.inl"

namespace btr {

extern const HammingKernels hamming_avx2{avx2::distance_matrix, avx2::topk};

}  // namespace btr
