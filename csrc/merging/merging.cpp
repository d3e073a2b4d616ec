#include "merging/merging.h"

namespace btr {

extern const MergingKernels merging_portable, merging_avx2;

const MergingKernels& merging_kernels() {
#ifdef BTR_HAVE_AVX2
  if (isa() == Isa::avx2) return merging_avx2;
#endif
  return merging_portable;
}

}  // namespace btr
