// attention.h compiled for AVX-512.
#define BTR_ISA_NAMESPACE avx512
#include "attention/generic.inl"

namespace btr {

extern const AttentionKernels attention_avx512{avx512::run_attention, avx512::combine_attention};

}  // namespace btr
