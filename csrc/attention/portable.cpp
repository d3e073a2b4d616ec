// attention.h compiled for plain C++.
#define BTR_ISA_NAMESPACE portable
#include "attention/generic.inl"

namespace btr {

extern const AttentionKernels attention_portable{portable::run_attention, portable::combine_attention};

}  // namespace btr
