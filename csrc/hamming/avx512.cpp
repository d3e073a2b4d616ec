// hamming.h compiled for AVX-512.
#define BTR_ISA_NAMESPACE avx512
#include "hamming/generic.inl"

namespace btr {

extern const HammingKernels hamming_avx512{avx512::distance_matrix, avx512::topk};

}  // namespace btr
