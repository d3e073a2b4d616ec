// bits.h in plain C++: the fallback for any CPU.
#define BTR_ISA_NAMESPACE portable
#include "bits/generic.inl"
#include "bits/masked.inl"

namespace btr {
namespace {

void pack(const void* x, DType dtype, int64_t rows, int64_t d, uint8_t* out) {
  auto run = [&](auto* typed) {
    for (int64_t r = 0; r < rows; ++r) portable::pack_row_generic(typed + r * d, d, out + r * bytes_for(d));
  };
  if (dtype == DType::boolean) run(static_cast<const bool_t*>(x));
  portable::with_float_type(dtype, [&](auto* type) { run(static_cast<const std::remove_pointer_t<decltype(type)>*>(x)); });
}

void unpack(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
            const float* token_scale, void* out, DType dtype, bool) {
  portable::with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t r = 0; r < rows; ++r)
      portable::unpack_row_generic(bits + r * bytes_for(d), 0, d, scale, bias, token_scale ? token_scale[r] : 1.0f,
                                   static_cast<T*>(out) + r * d);
  });
}

void binarize(const void* x, DType dtype, int64_t rows, int64_t d, bool layer, double eps, uint8_t* bits,
              float* magnitude) {
  portable::binarize_generic(x, dtype, rows, d, layer, eps, bits, magnitude, portable::pack_centred_generic);
}

}  // namespace

extern const BitsKernels bits_portable{pack, unpack, binarize, portable::sign_scale_generic,
                                       portable::sign_scale_backward_generic, portable::compress, portable::expand,
                                       portable::masks_hold};

}  // namespace btr
