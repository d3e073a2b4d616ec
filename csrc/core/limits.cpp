#include "core/limits.h"

#include <cstring>
#include <stdexcept>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace btr {
namespace {

namespace plain {
#define BTR_TARGET
constexpr int kWidth = 16;
#include "core/limits.inl"
#undef BTR_TARGET
}  // namespace plain

#ifdef __x86_64__
namespace avx2 {
#define BTR_TARGET __attribute__((target("avx2,fma")))
constexpr int kWidth = 32;
#include "core/limits.inl"
#undef BTR_TARGET
}  // namespace avx2

namespace avx512 {
#define BTR_TARGET __attribute__((target("avx512f")))
constexpr int kWidth = 64;
#include "core/limits.inl"
#undef BTR_TARGET
}  // namespace avx512
#endif

struct Loops {
  int64_t (*read_1)(const void*, int64_t);
  int64_t (*read_4)(const void*, int64_t);
  int64_t (*read_8)(const void*, int64_t);
  float (*multiply_adds)(int64_t, float, float);
  int64_t operations;
};

#define BTR_LOOPS(isa) \
  Loops { isa::read_streams<1>, isa::read_streams<4>, isa::read_streams<8>, isa::multiply_add_rounds, isa::kOperations }

Loops best_loops() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return BTR_LOOPS(avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return BTR_LOOPS(avx2);
#endif
  return BTR_LOOPS(plain);
}

const Loops& loops() {
  static const Loops value = best_loops();
  return value;
}

template <int64_t (*Loops::*kLoop)(const void*, int64_t)>
void read(void*, const void* source, int64_t bytes) {
  volatile int64_t sink = (loops().*kLoop)(source, bytes);
  (void)sink;
}

// Any value but 0: zeros can be written without being sent to memory.
void set(void* destination, const void*, int64_t bytes) { std::memset(destination, 1, size_t(bytes)); }

void copy(void* destination, const void* source, int64_t bytes) { std::memmove(destination, source, size_t(bytes)); }

#ifdef __SSE2__
void stream(void* destination, const void*, int64_t bytes) {
  auto* out = static_cast<__m128i*>(destination);
  const __m128i value = _mm_set1_epi8(1);
  for (int64_t i = 0; i < bytes / 16; i += 4)
    for (int k = 0; k < 4; ++k) _mm_stream_si128(out + i + k, value);
  _mm_sfence();
}

void stream_copy(void* destination, const void* source, int64_t bytes) {
  auto* out = static_cast<__m128i*>(destination);
  const auto* in = static_cast<const __m128i*>(source);
  for (int64_t i = 0; i < bytes / 16; i += 4)
    for (int k = 0; k < 4; ++k) _mm_stream_si128(out + i + k, _mm_load_si128(in + i + k));
  _mm_sfence();
}
#endif

struct Way {
  const char *kind, *name;
  void (*run)(void*, const void*, int64_t);
};

constexpr Way kWays[] = {
    {"read", "1 stream", read<&Loops::read_1>}, {"read", "4 streams", read<&Loops::read_4>},
    {"read", "8 streams", read<&Loops::read_8>}, {"write", "memset", set},
    {"copy", "memmove", copy},
#ifdef __SSE2__
    {"write", "streaming stores", stream},      {"copy", "streaming copy", stream_copy},
#endif
};

}  // namespace

std::vector<MemoryWay> memory_ways() {
  std::vector<MemoryWay> ways;
  for (const Way& way : kWays) ways.push_back({way.kind, way.name});
  return ways;
}

void memory_passes(const std::string& name, void* destination, const void* source, int64_t bytes, int64_t passes) {
  for (const Way& way : kWays) {
    if (name != way.name) continue;
    // Called through a pointer that the compiler cannot see through, so that no pass is left out.
    void (*volatile run)(void*, const void*, int64_t) = way.run;
    for (int64_t i = 0; i < passes; ++i) run(destination, source, bytes);
    return;
  }
  throw std::invalid_argument("way: expected a name that memory_ways lists, got '" + name + "'");
}

int64_t multiply_adds(int64_t rounds) {
  // Half and one keep every chain at finite, normal values.
  volatile float factor = 0.5f, sink = loops().multiply_adds(rounds, factor, 1.0f);
  (void)sink;
  return rounds * loops().operations;
}

}  // namespace btr
