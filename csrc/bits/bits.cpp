#include "bits/bits.h"

#include "core/select.h"

namespace btr {

BTR_DEFINE_KERNELS(BitsKernels, bits)

}  // namespace btr
