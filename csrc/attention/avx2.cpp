// attention.h compiled for AVX2 and FMA.
#define BTR_ISA_NAMESPACE avx2
#include "attention/generic.inl"

namespace btr {

extern const AttentionKernels attention_avx2{avx2::run_attention, avx2::combine_attention};

}  // namespace btr
