// Defines <family>_kernels(): the family's table for the instruction set in use.
#pragma once

#include "core/isa.h"

#ifdef BTR_HAVE_AVX2
#define BTR_CASE_AVX2(family) \
  case Isa::avx2:             \
    return family##_avx2;
#else
#define BTR_CASE_AVX2(family)
#endif

#ifdef BTR_HAVE_AVX512
#define BTR_CASE_AVX512(family) \
  case Isa::avx512:             \
    return family##_avx512;
#else
#define BTR_CASE_AVX512(family)
#endif

#ifdef BTR_HAVE_NEON
#define BTR_CASE_NEON(family) \
  case Isa::neon:             \
    return family##_neon;
#else
#define BTR_CASE_NEON(family)
#endif

#define BTR_DEFINE_KERNELS(Type, family)                                                      \
  extern const Type family##_portable, family##_avx2, family##_avx512, family##_neon;         \
  const Type& family##_kernels() {                                                            \
    switch (isa()) {                                                                          \
      BTR_CASE_AVX2(family)                                                                   \
      BTR_CASE_AVX512(family)                                                                 \
      BTR_CASE_NEON(family)                                                                   \
      default:                                                                                \
        return family##_portable;                                                             \
    }                                                                                         \
  }
