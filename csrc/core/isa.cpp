#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace btr {
namespace {

struct Level {
  Isa isa;
  const char* name;
  std::string (*lacks)();
};

#if defined(BTR_HAVE_AVX2) || defined(BTR_HAVE_AVX512)
// A list of those features that are missing. The compiler's run-time library also asks the operating system whether it
// keeps the registers.
#define BTR_NEED(feature) \
  if (!__builtin_cpu_supports(feature)) missing += std::string(missing.empty() ? "" : ", ") + feature;

std::string avx2_lacks() {
  __builtin_cpu_init();
  std::string missing;
  BTR_NEED("avx2")
  BTR_NEED("fma")
  BTR_NEED("bmi")
  BTR_NEED("bmi2")
  BTR_NEED("popcnt")
  BTR_NEED("f16c")
  return missing;
}

[[maybe_unused]] std::string avx512_lacks() {
  std::string missing = avx2_lacks();
  BTR_NEED("avx512f")
  BTR_NEED("avx512bw")
  BTR_NEED("avx512dq")
  BTR_NEED("avx512vl")
  BTR_NEED("avx512vbmi")
  BTR_NEED("avx512vnni")
  BTR_NEED("avx512vpopcntdq")
  BTR_NEED("avx512bitalg")
  return missing;
}

#undef BTR_NEED
#endif

constexpr Level kLevels[] = {
    {Isa::portable, "portable", [] { return std::string(); }},
#ifdef BTR_HAVE_AVX2
    {Isa::avx2, "avx2", avx2_lacks},
#endif
#if defined(BTR_HAVE_AVX512) && defined(BTR_EMULATE_AVX512)
    {Isa::avx512, "avx512", avx2_lacks},
#elif defined(BTR_HAVE_AVX512)
    {Isa::avx512, "avx512", avx512_lacks},
#endif
#ifdef BTR_HAVE_NEON
    // Part of every 64-bit ARM CPU.
    {Isa::neon, "neon", [] { return std::string(); }},
#endif
};

Isa parse(const std::string& name, const char* argument) {
  std::string runnable, why;
  for (const Level& level : kLevels) {
    const std::string lacks = level.lacks();
    if (name == level.name) {
      if (lacks.empty()) return level.isa;
      why = ", but this machine lacks " + lacks;
    } else if (lacks.empty()) {
      runnable += (runnable.empty() ? "" : ", ") + std::string(level.name);
    }
  }
  throw std::invalid_argument(std::string(argument) + ": expected an instruction set that runs here (" + runnable +
                              "), got '" + name + "'" + why);
}

Isa initial() {
  if (const char* forced = std::getenv("BTR_ISA"); forced && *forced) return parse(forced, "BTR_ISA");
  return parse(runnable_isas().back(), "isa");
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{initial()};
  return value;
}

}  // namespace

std::vector<IsaStatus> built_isas() {
  std::vector<IsaStatus> found;
  for (const Level& level : kLevels) found.push_back({level.name, level.lacks()});
  return found;
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> found;
  for (const Level& level : kLevels)
    if (level.lacks().empty()) found.emplace_back(level.name);
  return found;
}

Isa isa() { return current().load(std::memory_order_relaxed); }

std::string isa_name() {
  const Isa now = isa();
  for (const Level& level : kLevels)
    if (level.isa == now) return level.name;
  return "";
}

void set_isa(const std::string& name) { current().store(parse(name, "name"), std::memory_order_relaxed); }

bool deposits_slowly() {
#if defined(BTR_HAVE_AVX2) || defined(BTR_HAVE_AVX512)
  static const bool slowly = [] {
    __builtin_cpu_init();
    return bool(__builtin_cpu_is("amdfam17h"));
  }();
  return slowly;
#else
  return false;
#endif
}

}  // namespace btr
