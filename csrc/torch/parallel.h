// How operators split work among the threads that torch is set to use.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "core/tuning.h"

namespace btr {

// f(begin, end) over parts of [0, count) of at least `grain`.
template <typename F>
void parallel(int64_t count, int64_t grain, F&& f) {
  if (count > 0) torch::stable::parallel_for(0, count, grain, f);
}

// How many items of `cost` make up `enough` work for a thread.
inline int64_t grain_of(int64_t enough, int64_t cost) {
  return std::max<int64_t>(enough / std::max<int64_t>(cost, 1), 1);
}

template <typename F>
void parallel_rows(int64_t rows, int64_t bytes_a_row, F&& f) {
  parallel(rows, grain_of(tuning().parallel_bytes_per_thread, bytes_a_row), f);
}

}  // namespace btr
