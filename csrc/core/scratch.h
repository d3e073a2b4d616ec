// Temporary memory of one kernel call. Little of it lies in the object itself, on the stack, since allocations are much
// of what matching or merging a few tokens costs. Out of line and untemplated on purpose: an inline std::vector in a file
// compiled with AVX2 flags could be the copy that the linker keeps for everybody.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/export.h"

namespace btr {

class BTR_EXPORT Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  // Memory for `count` values of T, aligned to a cache line and not initialised; freed with this object. Throws
  // std::bad_alloc. At most kBlocks calls per object.
  template <typename T>
  T* get(int64_t count) {
    return static_cast<T*>(allocate(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  static constexpr int kBlocks = 12;
  static constexpr size_t kLine = 64, kNearBytes = 16 * 1024;
  void* allocate(size_t bytes);

  alignas(kLine) unsigned char near_[kNearBytes];
  size_t near_used_ = 0;
  void* blocks_[kBlocks];
  int used_ = 0;
};

}  // namespace btr
