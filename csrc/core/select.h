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

#define BTR_DEFINE_KERNELS(Type, family)              \
  extern const Type family##_portable, family##_avx2; \
  const Type& family##_kernels() {                    \
    switch (isa()) {                                  \
      BTR_CASE_AVX2(family)                           \
      default:                                        \
        return family##_portable;                     \
    }                                                 \
  }
