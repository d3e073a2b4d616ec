// Quick answers to whether the integers inside tensors are what operators may rely on: one pass and one call, where the
// checks of btr_kernels/ops/ take up to ten calls into PyTorch. "No" may also mean "not looked at": those checks
// then find out, and say what is wrong.

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <limits>

#include "torch/arguments.h"

namespace btr {
namespace {

// f(values, count) for contiguous int32 or int64; false for anything else.
template <typename F>
bool with_integers(const Tensor& t, F&& f) {
  if (!t.is_contiguous()) return false;
  if (t.scalar_type() == ScalarType::Int) return f(static_cast<const int32_t*>(t.const_data_ptr()), t.numel());
  if (t.scalar_type() == ScalarType::Long) return f(static_cast<const int64_t*>(t.const_data_ptr()), t.numel());
  return false;
}

// Without an early exit, so that it becomes vector code.
template <typename T>
bool all_within(const T* values, int64_t count, int64_t low, int64_t high) {
  bool within = true;
  for (int64_t i = 0; i < count; ++i) within &= (values[i] >= low) & (values[i] <= high);
  return within;
}

bool all_within(const Tensor& t, int64_t low, int64_t high) {
  return with_integers(t, [&](const auto* values, int64_t count) { return all_within(values, count, low, high); });
}

// From 0, never decreasing, and ending at `total` or no later.
template <typename T>
bool are_offsets(const T* offsets, int64_t count, int64_t total, bool end_at_total) {
  bool rising = count >= 1 && offsets[0] == 0;
  for (int64_t i = 1; i < count; ++i) rising &= offsets[i - 1] <= offsets[i];
  return rising && (end_at_total ? offsets[count - 1] == total : offsets[count - 1] <= total);
}

bool ids_fit(Tensor ids, int64_t rows) { return all_within(ids, 0, rows - 1); }

bool sizes_fit(const Tensor& sizes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  return all_within(sizes, 0, kMost) && with_integers(sizes, [&](const auto* values, int64_t count) {
           int64_t total = 0;
           for (int64_t i = 0; i < count; ++i) total += values[i];
           return total <= kMost;
         });
}

bool plan_fits(Tensor slot, Optional sizes, int64_t rows, Optional cu_in, Optional cu_out) {
  if (sizes && !sizes_fit(*sizes)) return false;
  if (!cu_in) return all_within(slot, -1, rows - 1);
  if (!cu_out || cu_in->numel() != cu_out->numel()) return false;
  return with_integers(*cu_in, [&](const auto* from, int64_t count) {
    if (!are_offsets(from, count, slot.numel(), true)) return false;
    return with_integers(*cu_out, [&](const auto* to, int64_t) {
      if (!are_offsets(to, count, rows, false)) return false;
      return with_integers(slot, [&](const auto* slots, int64_t) {
        bool fit = true;
        for (int64_t i = 0; i + 1 < count; ++i)
          fit &= all_within(slots + from[i], from[i + 1] - from[i], -1, int64_t(to[i + 1]) - to[i] - 1);
        return fit;
      });
    });
  });
}

bool lengths_fit(Tensor keep, Optional lengths, Optional cu_seqlens, int64_t rows) {
  return all_within(keep, 1, std::numeric_limits<int64_t>::max()) && (!lengths || all_within(*lengths, 0, rows)) &&
         (!cu_seqlens || with_integers(*cu_seqlens, [&](const auto* offsets, int64_t count) {
           return are_offsets(offsets, count, rows, true);
         }));
}

STABLE_TORCH_LIBRARY_FRAGMENT(btr_native, m) {
  m.def("ids_fit(Tensor ids, int rows) -> bool");
  m.def("plan_fits(Tensor slot, Tensor? sizes, int rows, Tensor? cu_in, Tensor? cu_out) -> bool");
  m.def("lengths_fit(Tensor keep, Tensor? lengths, Tensor? cu_seqlens, int rows) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("ids_fit", TORCH_BOX(&ids_fit));
  m.impl("plan_fits", TORCH_BOX(&plan_fits));
  m.impl("lengths_fit", TORCH_BOX(&lengths_fit));
}

}  // namespace
}  // namespace btr
