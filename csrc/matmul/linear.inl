// The kernel of matmul.h for float tokens.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/rows.h"
#include "core/scratch.h"
#include "core/vectors.inl"
#include "matmul/dot.inl"
#include "matmul/matmul.h"

namespace btr::BTR_ISA_NAMESPACE {

// row *= norm / sqrt(mean(row^2) + eps)
inline void normalise(float* row, int64_t d, const float* norm, float eps) {
  Floats lanes = {};
  int64_t c = 0;
  for (; c + kLanes<float> <= d; c += kLanes<float>) lanes += load(row + c) * load(row + c);
  float squares = sum_of(lanes);
  for (; c < d; ++c) squares += row[c] * row[c];
  const float factor = 1.0f / std::sqrt(squares / float(d) + eps);
  for (c = 0; c < d; ++c) row[c] = row[c] * factor * norm[c];
}

inline void run_linear(const LinearArgs& args, const MatmulPlan& plan, int64_t begin, int64_t end) {
  const Products products{args.weight, args.n,        args.d,   args.gated,   nullptr,
                          nullptr,     args.residual, args.out, args.out_type};
  for (int64_t piece = begin; piece < end; ++piece) {
    const MatmulPiece p = piece_of(plan, args.m, args.n, piece);
    Scratch scratch;
    with_float_type(args.weight_type, [&](auto* weight_type) {
      using W = std::remove_pointer_t<decltype(weight_type)>;
      dot_block<W>(products, p.token, p.tokens, p.first, p.last, scratch, [&](int64_t t, float* row) {
        with_float_type(args.x_type, [&](auto* x_type) {
          using X = std::remove_pointer_t<decltype(x_type)>;
          const X* x = static_cast<const X*>(args.x) + t * args.d;
          for (int64_t c = 0; c < args.d; ++c) row[c] = to_float(x[c]);
        });
        if (args.norm) normalise(row, args.d, args.norm, args.eps);
      });
    });
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
