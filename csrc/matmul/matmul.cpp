#include "matmul/matmul.h"

#include <algorithm>

#include "core/select.h"
#include "core/tuning.h"

namespace btr {

BTR_DEFINE_KERNELS(MatmulKernels, matmul)

namespace {
// Of a block's bits and sums: with its tables, a thread needs less than 2 MB.
constexpr int64_t kBlockBytes = 7 << 18;
}  // namespace

MatmulPlan plan_matmul(const MatmulArgs& args, int threads) {
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  const bool integers = args.weight_type == DType::i16 || args.weight_type == DType::i8;
  const Tuning& t = tuning();
  MatmulPlan plan{};
  if (args.m <= (args.channel_major ? integers ? t.matmul_sum_max_tokens_integer : t.matmul_sum_max_tokens
                                    : t.matmul_dot_max_tokens)) {
    plan.block = MatmulKernels::kFewTokens;
  } else {
    plan.table_bits = args.m >= t.matmul_wide_tables_tokens ? 5 : 4;
    const int64_t bytes_a_token = 8 * groups_for(args.d) + 4 * MatmulKernels::kStripe * (args.gated ? 2 : 1) + 64;
    plan.block = std::clamp<int64_t>(kBlockBytes / bytes_a_token, 1, t.matmul_block_tokens);
  }
  // Blocks of equal size: a short last one would pay for all the tables.
  plan.blocks = std::max<int64_t>(parts(args.m, plan.block), 1);
  plan.block = std::max<int64_t>(parts(args.m, plan.blocks), 1);
  plan.blocks = std::max<int64_t>(parts(args.m, plan.block), 1);
  plan.streaming = args.m * args.n * size_of(args.out_type) > t.matmul_streaming_bytes;
  const int64_t stripes = std::max<int64_t>(parts(args.n, MatmulKernels::kStripe), 1);
  // Enough pieces to keep the threads busy to the end; a block's bits are transposed once for each of its parts.
  plan.column_parts = threads == 1 ? 1 : std::min(stripes, parts(4 * threads, plan.blocks));
  return plan;
}

}  // namespace btr
