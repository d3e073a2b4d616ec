// What the machine can do: loops that do nothing but move memory or multiply and add. The benchmarks measure with them
// the limits that kernels are compared with, so they use the best instructions of this CPU whatever BTR_ISA says.
//
//   kind    way                what it is for
//   read    1, 4, 8 streams    one stream is best in L1; several keep more prefetchers busy in L3 and main memory
//   write   memset             in caches
//           streaming stores   in main memory: a line is not read before it is written
//   copy    memmove, streaming copy: the same
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/export.h"

namespace btr {

struct MemoryWay {
  std::string kind, name;
};

BTR_EXPORT std::vector<MemoryWay> memory_ways();

// Moves `bytes` (a multiple of kMemoryBlock) `passes` times: reads `source`, writes `destination`, or copies. Addresses
// are multiples of 64; the one that a way does not use may be null. Throws std::invalid_argument for an unknown way.
constexpr int64_t kMemoryBlock = 4096;
BTR_EXPORT void memory_passes(const std::string& way, void* destination, const void* source, int64_t bytes,
                              int64_t passes);

// Runs `rounds` rounds of independent float32 multiply-adds in registers; returns how many operations that were
// (2 a multiply-add).
BTR_EXPORT int64_t multiply_adds(int64_t rounds);

}  // namespace btr
