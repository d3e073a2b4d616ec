#include "attention/attention.h"

#include "core/select.h"

namespace btr {

BTR_DEFINE_KERNELS(AttentionKernels, attention)

}  // namespace btr
