#include "bits/bits.h"

namespace btr {

extern const BitsKernels bits_portable, bits_avx2;

const BitsKernels& bits_kernels() {
#ifdef BTR_HAVE_AVX2
  if (isa() == Isa::avx2) return bits_avx2;
#endif
  return bits_portable;
}

}  // namespace btr
