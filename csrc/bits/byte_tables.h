// What depositing bits in the channels of a mask, and extracting them, gives for every byte: for CPUs without an
// instruction for it, or with a slow one. Data only, so that all instruction sets may share it.
#pragma once

#include <cstdint>

namespace btr {

struct ByteTables {
  uint8_t deposit[256][256];  // [mask][bits]: the lowest bits, moved to where the mask is set
  uint8_t extract[256][256];  // [mask][bits]: the bits where the mask is set, moved to the lowest
};

extern const ByteTables byte_tables;

}  // namespace btr
