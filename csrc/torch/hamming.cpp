// Operators of hamming/hamming.h.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

#include "core/tuning.h"
#include "hamming/hamming.h"
#include "torch/hamming_arguments.h"
#include "torch/parallel.h"

namespace btr {
namespace {

void hamming_distance(Tensor a, Tensor b, Tensor out) {
  const DistanceArguments args(a, b, out);
  const int64_t m = args.m, n = args.n, w = args.w;
  if (n == 0) return;
  const bool streaming = args.batch * m * n * int64_t(sizeof(int32_t)) > tuning().hamming_streaming_bytes;
  // Rows of all batches are split alike; a range may start and end within a batch.
  parallel_rows(args.batch * m, n * w, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t item = i / m, stop = std::min(end, (item + 1) * m);
      hamming_kernels().distance(args.a + i * w, stop - i, args.b + item * n * w, n, w, args.distances + i * n, streaming);
      i = stop;
    }
  });
}

void hamming_topk(Tensor a, Tensor b, Tensor distances, Tensor indices) {
  const NearestArguments args(a, b, distances, indices);
  const int64_t w = args.w, k = args.k;
  parallel_rows(args.m, args.n * w, [&](int64_t begin, int64_t end) {
    hamming_kernels().topk(args.a + begin * w, end - begin, args.b, args.n, w, k, args.distances + begin * k,
                           args.indices + begin * k);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(btr_native, m) {
  m.def("hamming_distance(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("hamming_topk(Tensor a, Tensor b, Tensor(a!) distances, Tensor(b!) indices) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("hamming_distance", TORCH_BOX(&hamming_distance));
  m.impl("hamming_topk", TORCH_BOX(&hamming_topk));
}

}  // namespace
}  // namespace btr
