// Packing, unpacking and binarization of tokens: rows of d channels, contiguous, in ceil(d / 8) bytes.
//
// Channel c lies in byte c / 8, bit c % 8 from the least significant. A bit is 1 iff x >= 0: both zeros give 1, NaN
// gives 0. Pad bits are written as 0 and ignored when read.
//
// The kernels of floats are bound by memory once out of cache; per 32 channels:
//   pack    f32 128 bytes read,  4 written    compare, narrow, one movemask
//   unpack  f32   4 bytes read, 128 written   broadcast, shift the bit to the sign, xor into the scale
// Masked bits are bound by instructions where the tables are in cache, 15 for each 64 channels with BMI2; they read a part
// of a code, 8 bytes of the mask and 8 of the fill, and write 8.
// Means and sums of squares run in float64, so no finite input overflows. Threads split rows; see torch/bits.cpp.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace btr {

enum class Norm : int32_t { none = 0, rms = 1, layer = 2 };
enum class SignGradient : int32_t { straight_through = 0, tanh = 1 };

struct SignScaleBackward {
  Norm norm;
  double eps;
  SignGradient gradient;
  double limit;  // clamp, or beta
};

// Which channels of a token are stored, for each vocabulary id; where `count` is 0 there can be no tokens.
struct Masks {
  const uint8_t* mask;  // count x w bytes
  int64_t count, w;
};

struct BitsKernels {
  // x: rows x d of `dtype` (f32, f16, bf16, boolean) -> out.
  void (*pack)(const void* x, DType dtype, int64_t rows, int64_t d, uint8_t* out);

  // token_scale[row] * (scale[c] * +-1) + bias[c], computed in float32, as `dtype` (f32, f16, bf16). Null vectors
  // stand for 1, 1 and 0. `streaming`: write past the caches, for results larger than them.
  void (*unpack)(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
                 const float* token_scale, void* out, DType dtype, bool streaming);

  // Signs of x, or of x - mean(x) for Norm::layer; magnitude (may be null): sqrt(mean(square) + eps) of the same.
  void (*binarize)(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, double eps, uint8_t* bits,
                   float* magnitude);

  // +-scale by the same signs, in x's dtype. `streaming` as in unpack.
  void (*sign_scale)(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, const float* scale, void* out,
                     bool streaming);

  // Gradients in x (x's dtype) and, added to grad_scale, in scale (float32, d).
  void (*sign_scale_backward)(const void* grad, const void* x, DType dtype, int64_t rows, int64_t d,
                              const float* scale, const SignScaleBackward& options, void* grad_x, float* grad_scale);

  // Masked bits. Whatever ids and masks are, nothing out of bounds is read or written: an id out of range counts as the
  // nearest one, bits past the k-th of a mask are left out, and bits past a code are 0.
  //
  // bits: rows x w bytes -> codes: rows x bytes_for(k) bytes, 1 <= k <= 8 w: the bits of the channels in the mask of
  // the token's id, in order.
  void (*compress)(const uint8_t* bits, const int64_t* ids, int64_t rows, const Masks& masks, int64_t k,
                   uint8_t* codes);

  // The way back: codes: rows x code_bytes bytes, 1 <= code_bytes <= w -> bits: rows x w bytes; the other channels are
  // those of the id's row of `fill` (masks.count x w).
  void (*expand)(const uint8_t* codes, int64_t code_bytes, const int64_t* ids, int64_t rows, const Masks& masks,
                 const uint8_t* fill, uint8_t* bits);

  // Whether all ids are in range and their masks have k bits each.
  bool (*masks_hold)(const Masks& masks, const int64_t* ids, int64_t rows, int64_t k);
};

BTR_EXPORT const BitsKernels& bits_kernels();

}  // namespace btr
