#include "matmul/matmul.h"

#include <algorithm>

#include "core/select.h"
#include "core/tuning.h"

namespace btr {

BTR_DEFINE_KERNELS(MatmulKernels, matmul)

MatmulPlan plan_matmul(const MatmulArgs& args, int threads) {
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  MatmulPlan plan{};
  plan.lookup = args.m > tuning().matmul_dot_max_tokens;
  // Expanded tokens of the dot kernel stay in L1 or close to it.
  plan.block = plan.lookup ? int64_t(tuning().matmul_block_tokens) : MatmulKernels::kDotTokens;
  plan.blocks = std::max<int64_t>(parts(args.m, plan.block), 1);
  const int64_t tiles = std::max<int64_t>(parts(args.n, MatmulKernels::kTile), 1);
  // Enough pieces to keep the threads busy to the end; a block's bits are transposed once for each of its parts.
  plan.column_parts = threads == 1 ? 1 : std::min(tiles, parts(4 * threads, plan.blocks));
  return plan;
}

}  // namespace btr
