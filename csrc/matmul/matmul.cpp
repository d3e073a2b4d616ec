#include "matmul/matmul.h"

#include <algorithm>

#include "core/select.h"

namespace btr {

BTR_DEFINE_KERNELS(MatmulKernels, matmul)

MatmulPlan plan_matmul(const MatmulArgs& args, int threads) {
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  MatmulPlan plan{};
  plan.lookup = args.m > MatmulKernels::kFewTokens;
  // Large blocks share the cost of a table among many tokens (about 1% at 1024), and their sums (64 KB) still fit in L2.
  plan.block = plan.lookup ? 1024 : MatmulKernels::kFewTokens;
  plan.blocks = std::max<int64_t>(parts(args.m, plan.block), 1);
  const int64_t tiles = std::max<int64_t>(parts(args.n, MatmulKernels::kTile), 1);
  // Enough pieces to keep the threads busy to the end; a block's bits are transposed once for each of its parts.
  plan.column_parts = threads == 1 ? 1 : std::min(tiles, parts(4 * threads, plan.blocks));
  return plan;
}

}  // namespace btr
