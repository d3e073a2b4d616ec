// merging.h compiled for AVX-512.
#define BTR_ISA_NAMESPACE avx512
#include "merging/generic.inl"

namespace btr {

extern const MergingKernels merging_avx512{avx512::match, avx512::merge_bits, avx512::merge_floats,
                                           avx512::merge_floats_backward};

}  // namespace btr
