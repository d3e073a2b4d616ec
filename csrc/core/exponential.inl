// The exponential function on vectors of float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/vectors.inl"

namespace btr::BTR_ISA_NAMESPACE {

// Above this, 26 ln 2, 1 / (1 + e^x) = (1 + tanh(-x / 2)) / 2 is 0 in float32 if tanh is rounded correctly, which counts
// where it is times infinity. (PyTorch's vectorised tanh can vanish from 25 ln 2 on.)
constexpr float kVanishing = 18.02f;

// e^x to 1 unit in the last place, from kVanishing on infinity.
BTR_INLINE Floats exponential(Floats x) {
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  const Floats bounded = x < -87.0f ? Floats{} - 87.0f : x < kVanishing ? x : Floats{} + kVanishing;
  // Adding this leaves the nearest integer in the low bits of the sum.
  const Floats magic = Floats{} + 0x1.8p23f, shifted = bounded * 0x1.715476p+0f + magic, n = shifted - magic;
  const Floats r = (bounded - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  Floats p = Floats{} + 0x1.a01a02p-13f;  // Taylor: the next term is less than 6e-9
  p = p * r + 0x1.6c16c2p-10f;
  p = p * r + 0x1.111112p-7f;
  p = p * r + 0x1.555556p-5f;
  p = p * r + 0x1.555556p-3f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Ints power;
  std::memcpy(&power, &shifted, sizeof power);
  power = (power << 23) + 0x3f800000;
  Floats scale;
  std::memcpy(&scale, &power, sizeof scale);
  return x < kVanishing ? p * scale : Floats{} + __builtin_inff();
}

}  // namespace btr::BTR_ISA_NAMESPACE
