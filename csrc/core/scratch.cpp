#include "core/scratch.h"

#include <cstdlib>
#include <new>

namespace btr {

void* Scratch::allocate(size_t bytes) {
  constexpr size_t kLine = 64;
  if (used_ == kBlocks) throw std::bad_alloc();
  // One spare line, so that a vector load at the end of a row may read past it.
  void* block = std::aligned_alloc(kLine, (bytes + 2 * kLine - 1) / kLine * kLine);
  if (!block) throw std::bad_alloc();
  return blocks_[used_++] = block;
}

Scratch::~Scratch() {
  for (int i = 0; i < used_; ++i) std::free(blocks_[i]);
}

}  // namespace btr
