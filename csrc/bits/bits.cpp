#include "bits/bits.h"

#include "bits/byte_tables.h"
#include "core/select.h"

namespace btr {
namespace {

// The lowest channel of a mask takes or gives the lowest bit; the rest is an earlier row of the tables.
constexpr ByteTables make_byte_tables() {
  ByteTables tables{};
  for (unsigned mask = 1; mask < 256; ++mask)
    for (unsigned bits = 0; bits < 256; ++bits) {
      const unsigned rest = mask & (mask - 1), lowest = mask ^ rest;
      tables.deposit[mask][bits] = uint8_t(tables.deposit[rest][bits >> 1] | (bits & 1 ? lowest : 0));
      tables.extract[mask][bits] = uint8_t(tables.extract[rest][bits] << 1 | (bits & lowest ? 1 : 0));
    }
  return tables;
}

}  // namespace

constexpr ByteTables byte_tables = make_byte_tables();

BTR_DEFINE_KERNELS(BitsKernels, bits)

}  // namespace btr
