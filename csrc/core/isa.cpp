#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace btr {
namespace {

struct Level {
  Isa isa;
  const char* name;
  bool (*runs)();
};

constexpr Level kLevels[] = {
    {Isa::portable, "portable", [] { return true; }},
#ifdef BTR_HAVE_AVX2
    // BMI2, F16C, FMA and POPCNT came with the same generation, and the kernels use them.
    {Isa::avx2, "avx2",
     [] {
       __builtin_cpu_init();
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
              __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("f16c");
     }},
#endif
};

std::vector<std::string> names(bool only_runnable) {
  std::vector<std::string> found;
  for (const Level& level : kLevels)
    if (!only_runnable || level.runs()) found.emplace_back(level.name);
  return found;
}

Isa parse(const std::string& name, const char* argument) {
  std::string runnable;
  for (const Level& level : kLevels) {
    if (!level.runs()) continue;
    if (name == level.name) return level.isa;
    runnable += (runnable.empty() ? "" : ", ") + std::string(level.name);
  }
  throw std::invalid_argument(std::string(argument) + ": expected an instruction set that runs here (" + runnable +
                              "), got '" + name + "'");
}

Isa initial() {
  if (const char* forced = std::getenv("BTR_ISA"); forced && *forced) return parse(forced, "BTR_ISA");
  return parse(names(true).back(), "isa");
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{initial()};
  return value;
}

}  // namespace

std::vector<std::string> built_isas() { return names(false); }
std::vector<std::string> runnable_isas() { return names(true); }

Isa isa() { return current().load(std::memory_order_relaxed); }

std::string isa_name() {
  const Isa now = isa();
  for (const Level& level : kLevels)
    if (level.isa == now) return level.name;
  return "";
}

void set_isa(const std::string& name) { current().store(parse(name, "name"), std::memory_order_relaxed); }

}  // namespace btr
