// Thresholds by which operators choose between kernels: named integers with a default for each instruction set, listed
// in tuning.inl. `BTR_TUNING="name=value,name=value"` in the environment or `set_tuning` overrides them.
//
// No value changes a result beyond the rounding of floats, so a change while operators run is harmless; reading and
// writing are atomic.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/export.h"

namespace btr {

// An int64 that may be written while others read it. Not std::atomic: its functions, compiled for one instruction set,
// could be the copy that the linker keeps for all.
class Threshold {
 public:
  __attribute__((always_inline)) operator int64_t() const { return __atomic_load_n(&value_, __ATOMIC_RELAXED); }
  __attribute__((always_inline)) void set(int64_t value) { __atomic_store_n(&value_, value, __ATOMIC_RELAXED); }

 private:
  int64_t value_;
};

struct Tuning {
#define BTR_THRESHOLD(family, name, least, portable, avx2, avx512, neon, selects) Threshold family##_##name;
#include "core/tuning.inl"
#undef BTR_THRESHOLD
};

// The thresholds of the instruction set in use. Throws std::invalid_argument, as isa() does for
// BTR_ISA, if BTR_TUNING is wrong.
BTR_EXPORT const Tuning& tuning();

struct ThresholdInfo {
  const char* name;
  int64_t value, default_value, least;
  const char* selects;
};

// All of them, for the instruction set in use.
BTR_EXPORT std::vector<ThresholdInfo> list_tuning();

// Overrides a threshold on every instruction set, for the whole process; nothing restores the defaults. Throws
// std::invalid_argument if there is no such threshold or it cannot have this value.
BTR_EXPORT void set_tuning(const std::string& name, std::optional<int64_t> value);

}  // namespace btr
