#include "core/scratch.h"

#include <cstdlib>
#include <new>

namespace btr {

void* Scratch::allocate(size_t bytes) {
  if (used_ == kBlocks) throw std::bad_alloc();
  // One spare line, so that a vector load at the end of a row may read past it.
  const size_t lines = (bytes + 2 * kLine - 1) / kLine * kLine;
#ifndef __SANITIZE_ADDRESS__  // which sees the ends of blocks of their own
  if (lines <= kNearBytes - near_used_) {
    near_used_ += lines;
    return near_ + near_used_ - lines;
  }
#endif
  void* block = std::aligned_alloc(kLine, lines);
  if (!block) throw std::bad_alloc();
  return blocks_[used_++] = block;
}

Scratch::~Scratch() {
  for (int i = 0; i < used_; ++i) std::free(blocks_[i]);
}

}  // namespace btr
