// merging.h compiled for NEON.
#define BTR_ISA_NAMESPACE neon
#include "merging/generic.inl"

namespace btr {

extern const MergingKernels merging_neon{neon::match, neon::merge_bits, neon::merge_floats,
                                         neon::merge_floats_backward};

}  // namespace btr
