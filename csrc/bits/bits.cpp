#include "bits/bits.h"

#include "bits/byte_tables.h"
#include "core/select.h"

namespace btr {
namespace {

constexpr ByteTables make_byte_tables() {
  ByteTables tables{};
  for (unsigned mask = 0; mask < 256; ++mask)
    for (unsigned bits = 0; bits < 256; ++bits)
      for (unsigned channel = 0, used = 0; channel < 8; ++channel) {
        if (!(mask >> channel & 1)) continue;
        tables.deposit[mask][bits] |= uint8_t((bits >> used & 1) << channel);
        tables.extract[mask][bits] |= uint8_t((bits >> channel & 1) << used);
        ++used;
      }
  return tables;
}

}  // namespace

constexpr ByteTables byte_tables = make_byte_tables();

BTR_DEFINE_KERNELS(BitsKernels, bits)

}  // namespace btr
