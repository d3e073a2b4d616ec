#include "matmul/matmul.h"

#include <algorithm>

#include "core/select.h"
#include "core/tuning.h"

namespace btr {

BTR_DEFINE_KERNELS(MatmulKernels, matmul)

namespace {
// Of a block's bits and sums: with its tables, a thread needs less than 2 MB.
constexpr int64_t kBlockBytes = 7 << 18;

// Float tokens that share a pass over the weight: more leave L1, but a second pass costs more.
constexpr int64_t kLinearTokens = 32;

int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

int64_t stripes_of(int64_t n) { return std::max<int64_t>(parts(n, MatmulKernels::kStripe), 1); }

// Splits m tokens into blocks of equal size, since a short last one would pay for all the tables or read all the weight,
// and n columns into enough parts to keep the threads busy to the end.
void split(MatmulPlan& plan, int64_t m, int64_t n, int threads, int parts_a_thread) {
  plan.blocks = std::max<int64_t>(parts(m, plan.block), 1);
  plan.block = std::max<int64_t>(parts(m, plan.blocks), 1);
  plan.blocks = std::max<int64_t>(parts(m, plan.block), 1);
  plan.column_parts = threads == 1 ? 1 : std::min(stripes_of(n), parts(parts_a_thread * threads, plan.blocks));
}
}  // namespace

MatmulPlan plan_matmul(const MatmulArgs& args, int threads) {
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
  plan.streaming = args.m * args.n * size_of(args.out_type) > t.matmul_streaming_bytes;
  split(plan, args.m, args.n, threads, 4);  // a block's bits are transposed once for each part of the columns
  return plan;
}

MatmulPlan plan_linear(const LinearArgs& args, int threads) {
  MatmulPlan plan{};
  plan.block = kLinearTokens;
  split(plan, args.m, args.n, threads, 1);  // for each the tokens are normalised again
  return plan;
}

MatmulPiece piece_of(const MatmulPlan& plan, int64_t m, int64_t n, int64_t piece) {
  const int64_t token = piece / plan.column_parts * plan.block, part = piece % plan.column_parts;
  const auto column = [&](int64_t i) {
    return std::min(stripes_of(n) * i / plan.column_parts * MatmulKernels::kStripe, n);
  };
  return {token, std::min(m - token, plan.block), column(part), column(part + 1)};
}

}  // namespace btr
