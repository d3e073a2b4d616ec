#include "hamming/hamming.h"

#include "core/select.h"

namespace btr {

BTR_DEFINE_KERNELS(HammingKernels, hamming)

}  // namespace btr
