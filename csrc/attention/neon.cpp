// attention.h compiled for NEON.
#define BTR_ISA_NAMESPACE neon
#include "attention/generic.inl"

namespace btr {

extern const AttentionKernels attention_neon{neon::run_attention, neon::combine_attention};

}  // namespace btr
