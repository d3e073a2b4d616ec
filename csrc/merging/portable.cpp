// merging.h compiled for plain C++.
#define BTR_ISA_NAMESPACE portable
#include "merging/generic.inl"

namespace btr {

extern const MergingKernels merging_portable{portable::match, portable::merge_bits, portable::merge_floats,
                                             portable::merge_floats_backward};

}  // namespace btr
