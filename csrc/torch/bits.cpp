// Operators of bits/bits.h.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

#include "bits/bits.h"
#include "core/scratch.h"
#include "core/tuning.h"
#include "torch/arguments.h"
#include "torch/parallel.h"

namespace btr {
namespace {

void pack_bits(Tensor x, Tensor out) {
  const int64_t d = token_size("x", x), rows = rows_of(x), w = bytes_for(d);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16, DType::boolean});
  const auto* in = read<char>("x", x, rows * d);
  auto* bits = write<uint8_t>("out", out, ScalarType::Byte, rows * w);
  parallel_rows(rows, d * size_of(dtype), [&](int64_t begin, int64_t end) {
    bits_kernels().pack(in + begin * d * size_of(dtype), dtype, end - begin, d, bits + begin * w);
  });
}

void unpack_bits(Tensor bits, Optional scale, Optional bias, Optional token_scale, Tensor out) {
  const int64_t d = token_size("out", out), rows = rows_of(out), w = bytes_for(d);
  const DType dtype = dtype_of("out", out, {DType::f32, DType::f16, DType::bf16});
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, rows * w);
  const auto *s = read_floats("scale", scale, d), *b = read_floats("bias", bias, d);
  const auto* ts = read_floats("token_scale", token_scale, rows);
  auto* y = write<char>("out", out, rows * d);
  const int64_t row_bytes = d * size_of(dtype);
  const bool streaming = rows * (w + row_bytes) > tuning().bits_streaming_bytes;
  parallel_rows(rows, row_bytes, [&](int64_t begin, int64_t end) {
    bits_kernels().unpack(in + begin * w, end - begin, d, s, b, ts ? ts + begin : nullptr, y + begin * row_bytes, dtype,
                          streaming);
  });
}

void binarize(Tensor x, bool layer, double eps, Tensor bits, Optional magnitude) {
  const int64_t d = token_size("x", x), rows = rows_of(x), w = bytes_for(d);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  const auto* in = read<char>("x", x, rows * d);
  auto* out = write<uint8_t>("bits", bits, ScalarType::Byte, rows * w);
  auto* size = magnitude ? write<float>("magnitude", *magnitude, ScalarType::Float, rows) : nullptr;
  parallel_rows(rows, d * size_of(dtype), [&](int64_t begin, int64_t end) {
    bits_kernels().binarize(in + begin * d * size_of(dtype), dtype, end - begin, d, layer, eps, out + begin * w,
                            size ? size + begin : nullptr);
  });
}

void sign_scale(Tensor x, Tensor scale, bool layer, Tensor out) {
  const int64_t d = token_size("x", x), rows = rows_of(x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  const auto* in = read<char>("x", x, rows * d);
  const auto* s = read_floats("scale", scale, d);
  auto* y = write<char>("out", out, x.scalar_type(), rows * d);
  const int64_t row_bytes = d * size_of(dtype);
  const bool streaming = 2 * rows * row_bytes > tuning().bits_streaming_bytes;
  parallel_rows(rows, row_bytes, [&](int64_t begin, int64_t end) {
    bits_kernels().sign_scale(in + begin * row_bytes, dtype, end - begin, d, layer, s, y + begin * row_bytes,
                              streaming);
  });
}

void sign_scale_backward(Tensor grad, Tensor x, Tensor scale, int64_t norm, double eps, bool tanh, double limit,
                         Tensor grad_x, Tensor grad_scale) {
  const int64_t d = token_size("x", x), rows = rows_of(x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  STD_TORCH_CHECK(norm >= 0 && norm <= 2, "norm: expected 0, 1 or 2, got ", norm);
  const SignScaleBackward options{Norm(norm), eps, tanh ? SignGradient::tanh : SignGradient::straight_through, limit};
  const auto *g = read<char>("grad", grad, x.scalar_type(), rows * d), *in = read<char>("x", x, rows * d);
  const auto* s = read_floats("scale", scale, d);
  auto* gx = write<char>("grad_x", grad_x, x.scalar_type(), rows * d);
  auto* gs = write<float>("grad_scale", grad_scale, ScalarType::Float, d);
  const int64_t row_bytes = d * size_of(dtype);

  // Each part sums its own rows; the parts are added in order, so that a result does not depend on the timing.
  const int64_t parts = std::min<int64_t>(rows, torch::stable::get_num_threads());
  Scratch scratch;
  float* sums = scratch.get<float>(parts * d);
  std::fill(sums, sums + parts * d, 0.0f);
  parallel(parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
      bits_kernels().sign_scale_backward(g + begin * row_bytes, in + begin * row_bytes, dtype, end - begin, d, s,
                                         options, gx + begin * row_bytes, sums + part * d);
    }
  });
  std::fill(gs, gs + d, 0.0f);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < d; ++c) gs[c] += sums[part * d + c];
}

Masks read_masks(const Tensor& mask, int64_t w, int64_t tokens) {
  STD_TORCH_CHECK(mask.dim() == 2 && mask.size(1) == w, "mask: expected shape (V, ", w, ")");
  const int64_t count = mask.size(0);
  STD_TORCH_CHECK(count >= 1 || tokens == 0, "mask: expected at least one row");
  return {read<uint8_t>("mask", mask, ScalarType::Byte, count * w), count, w};
}

void compress_bits(Tensor bits, Tensor ids, Tensor mask, int64_t k, Tensor out) {
  const int64_t w = token_size("bits", bits), rows = rows_of(bits), c = bytes_for(k);
  STD_TORCH_CHECK(1 <= k && k <= 8 * w, "k: expected 1 to ", 8 * w, ", got ", k);
  const Masks masks = read_masks(mask, w, rows);
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, rows * w);
  const auto* id = read<int64_t>("ids", ids, ScalarType::Long, rows);
  auto* codes = write<uint8_t>("out", out, ScalarType::Byte, rows * c);
  parallel_rows(rows, 2 * w + c, [&](int64_t begin, int64_t end) {
    bits_kernels().compress(in + begin * w, id + begin, end - begin, masks, k, codes + begin * c);
  });
}

void expand_bits(Tensor codes, Tensor ids, Tensor mask, Tensor fill, Tensor out) {
  const int64_t w = token_size("out", out), rows = rows_of(out), c = token_size("codes", codes);
  STD_TORCH_CHECK(c <= w, "codes: expected a last dimension of at most ", w, ", got ", c);
  const Masks masks = read_masks(mask, w, rows);
  const auto* in = read<uint8_t>("codes", codes, ScalarType::Byte, rows * c);
  const auto* id = read<int64_t>("ids", ids, ScalarType::Long, rows);
  const auto* others = read<uint8_t>("fill", fill, ScalarType::Byte, masks.count * w);
  auto* bits = write<uint8_t>("out", out, ScalarType::Byte, rows * w);
  parallel_rows(rows, 3 * w + c, [&](int64_t begin, int64_t end) {
    bits_kernels().expand(in + begin * c, c, id + begin, end - begin, masks, others, bits + begin * w);
  });
}

bool masks_hold(Tensor ids, Tensor mask, int64_t k) {
  const int64_t w = token_size("mask", mask), rows = ids.numel();
  const auto* id = read<int64_t>("ids", ids, ScalarType::Long, rows);
  return bits_kernels().masks_hold(read_masks(mask, w, rows), id, rows, k);
}

STABLE_TORCH_LIBRARY_FRAGMENT(btr_native, m) {
  m.def("pack_bits(Tensor x, Tensor(a!) out) -> ()");
  m.def("unpack_bits(Tensor bits, Tensor? scale, Tensor? bias, Tensor? token_scale, Tensor(a!) out) -> ()");
  m.def("restore_bits(Tensor bits, Tensor scale, Tensor(a!) copy, Tensor(b!) states) -> ()");  // on a GPU
  m.def("binarize(Tensor x, bool layer, float eps, Tensor(a!) bits, Tensor(b!)? magnitude) -> ()");
  m.def("sign_scale(Tensor x, Tensor scale, bool layer, Tensor(a!) out) -> ()");
  m.def("sign_scale_backward(Tensor grad, Tensor x, Tensor scale, int norm, float eps, bool tanh, float limit, "
        "Tensor(a!) grad_x, Tensor(b!) grad_scale) -> ()");
  m.def("compress_bits(Tensor bits, Tensor ids, Tensor mask, int k, Tensor(a!) out) -> ()");
  m.def("expand_bits(Tensor codes, Tensor ids, Tensor mask, Tensor fill, Tensor(a!) out) -> ()");
  m.def("masks_hold(Tensor ids, Tensor mask, int k) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("pack_bits", TORCH_BOX(&pack_bits));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits));
  m.impl("binarize", TORCH_BOX(&binarize));
  m.impl("sign_scale", TORCH_BOX(&sign_scale));
  m.impl("sign_scale_backward", TORCH_BOX(&sign_scale_backward));
  m.impl("compress_bits", TORCH_BOX(&compress_bits));
  m.impl("expand_bits", TORCH_BOX(&expand_bits));
  m.impl("masks_hold", TORCH_BOX(&masks_hold));
}

}  // namespace
}  // namespace btr
