#include "hamming/hamming.h"

namespace btr {

extern const HammingKernels hamming_portable, hamming_avx2;

const HammingKernels& hamming_kernels() {
#ifdef BTR_HAVE_AVX2
  if (isa() == Isa::avx2) return hamming_avx2;
#endif
  return hamming_portable;
}

}  // namespace btr
