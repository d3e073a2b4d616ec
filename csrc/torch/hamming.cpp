// Operators of hamming/hamming.h.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

#include "core/tuning.h"
#include "hamming/hamming.h"
#include "torch/arguments.h"
#include "torch/parallel.h"

namespace btr {
namespace {

void hamming_distance(Tensor a, Tensor b, Tensor out) {
  STD_TORCH_CHECK(out.dim() >= 2, "out: expected (..., m, n)");
  const int64_t m = out.size(out.dim() - 2), n = last_size(out), w = token_size("a", a);
  int64_t batch = 1;
  for (int64_t i = 0; i + 2 < out.dim(); ++i) batch *= out.size(i);
  const auto* pa = read<uint8_t>("a", a, ScalarType::Byte, batch * m * w);
  const auto* pb = read<uint8_t>("b", b, ScalarType::Byte, batch * n * w);
  auto* distances = write<int32_t>("out", out, ScalarType::Int, batch * m * n);
  if (n == 0) return;
  const bool streaming = batch * m * n * int64_t(sizeof(int32_t)) > tuning().hamming_streaming_bytes;
  // Rows of all batches are split alike; a range may start and end within a batch.
  parallel_rows(batch * m, n * w, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t item = i / m, stop = std::min(end, (item + 1) * m);
      hamming_kernels().distance(pa + i * w, stop - i, pb + item * n * w, n, w, distances + i * n, streaming);
      i = stop;
    }
  });
}

void hamming_topk(Tensor a, Tensor b, Tensor distances, Tensor indices) {
  const int64_t m = rows_of(a), n = rows_of(b), w = token_size("a", a), k = last_size(distances);
  STD_TORCH_CHECK(k >= 1 && k <= n, "k: expected 1 to ", n, ", got ", k);
  const auto* pa = read<uint8_t>("a", a, ScalarType::Byte, m * w);
  const auto* pb = read<uint8_t>("b", b, ScalarType::Byte, n * w);
  auto* dist = write<int32_t>("distances", distances, ScalarType::Int, m * k);
  auto* index = write<int64_t>("indices", indices, ScalarType::Long, m * k);
  parallel_rows(m, n * w, [&](int64_t begin, int64_t end) {
    hamming_kernels().topk(pa + begin * w, end - begin, pb, n, w, k, dist + begin * k, index + begin * k);
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
