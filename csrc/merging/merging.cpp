#include "merging/merging.h"

#include "core/select.h"

namespace btr {

BTR_DEFINE_KERNELS(MergingKernels, merging)

}  // namespace btr
