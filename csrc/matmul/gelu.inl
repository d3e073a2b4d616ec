// The gated GELU that follows two projections in T5's feed-forward, on rows of float32.
#pragma once

#include <cstring>

#include "core/exponential.inl"
#include "core/vectors.inl"

namespace btr::BTR_ISA_NAMESPACE {

// torch.nn.functional.gelu(x, approximate="tanh"), as x * sigmoid(2 u): tanh(u) would cancel for negative x.
BTR_INLINE Floats gelu(Floats x) {
  return x / (1.0f + exponential(-0x1.988454p+0f * (x + 0.044715f * (x * x * x))));
}

// gate[i] = gelu(gate[i]) * linear[i] for i < count.
inline void apply_gate(float* gate, const float* linear, int64_t count) {
  constexpr int kStep = kLanes<float>;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) store(gate + i, gelu(load(gate + i)) * load(linear + i));
  if (i == count) return;
  float a[kStep] = {}, b[kStep] = {};
  std::memcpy(a, gate + i, sizeof(float) * size_t(count - i));
  std::memcpy(b, linear + i, sizeof(float) * size_t(count - i));
  store(a, gelu(load(a)) * load(b));
  std::memcpy(gate + i, a, sizeof(float) * size_t(count - i));
}

}  // namespace btr::BTR_ISA_NAMESPACE
