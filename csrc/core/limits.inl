// The loops of limits.cpp for vectors of kWidth bytes. Every function carries BTR_TARGET, since vector code is compiled
// for the target of the function that it is written in, not of the one that it is inlined into.

typedef int64_t Words __attribute__((vector_size(kWidth), may_alias));
typedef float Lanes __attribute__((vector_size(kWidth)));

// The or of everything, read in kStreams streams at equal distances.
template <int kStreams>
BTR_TARGET int64_t read_streams(const void* source, int64_t bytes) {
  constexpr int kSums = 8, kEach = kSums / kStreams;
  const int64_t part = bytes / kStreams;
  const char* p = static_cast<const char*>(source);
  Words sums[kSums] = {};
  for (int64_t i = 0; i < part; i += kEach * kWidth)
    for (int s = 0; s < kStreams; ++s)
      for (int k = 0; k < kEach; ++k)
        sums[s * kEach + k] |= *reinterpret_cast<const Words*>(p + s * part + i + k * kWidth);
  for (int k = 1; k < kSums; ++k) sums[0] |= sums[k];
  return sums[0][0];
}

// Chains that do not wait for each other: latency times throughput is 8 to 10, and 12 fit into 16 registers.
constexpr int kChains = 12;
constexpr int64_t kOperations = 2 * kChains * (kWidth / 4);

BTR_TARGET float multiply_add_rounds(int64_t rounds, float factor, float term) {
  const Lanes b = Lanes{} + factor, c = Lanes{} + term;
  Lanes x[kChains];
  for (int k = 0; k < kChains; ++k) x[k] = c * float(k);
  for (int64_t i = 0; i < rounds; ++i)
    for (int k = 0; k < kChains; ++k) x[k] = x[k] * b + c;
  for (int k = 1; k < kChains; ++k) x[0] += x[k];
  return x[0][0];
}
