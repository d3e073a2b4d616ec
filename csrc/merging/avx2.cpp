// merging.h compiled for AVX2 and POPCNT.
#define BTR_ISA_NAMESPACE avx2
#include "merging/generic.inl"

namespace btr {

extern const MergingKernels merging_avx2{avx2::match, avx2::merge_bits, avx2::merge_floats,
                                         avx2::merge_floats_backward};

}  // namespace btr
