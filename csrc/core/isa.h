// Which instruction set the CPU kernels use: the best that this CPU has, unless forced.
//
// Every operator family has a table of functions per instruction set (`BitsKernels` and so on in <family>/<family>.h),
// filled by one translation unit each (`<family>/portable.cpp`, `<family>/avx2.cpp`), so one binary runs on every CPU
// of its architecture. To add an instruction set: a line here, in `isa.cpp`, `select.h` and `tuning.inl`, a file per
// family, its flags in CMakeLists.txt.
#pragma once

#include <string>
#include <vector>

#include "core/export.h"

namespace btr {

// Worst first.
enum class Isa { portable, avx2, avx512, neon };
constexpr int kIsas = 4;

struct IsaStatus {
  std::string name;
  std::string lacks;  // the features that this CPU or its operating system lacks, or "" if it runs
};

// Every instruction set that was built, worst first.
BTR_EXPORT std::vector<IsaStatus> built_isas();

// Names of those that run here.
BTR_EXPORT std::vector<std::string> runnable_isas();

// The instruction set in use: at first the one that the environment variable BTR_ISA names, or else the best.
// Throws std::invalid_argument if BTR_ISA names none that runs here.
BTR_EXPORT Isa isa();
BTR_EXPORT std::string isa_name();

// Forces an instruction set for the whole process. Throws std::invalid_argument if it does not run here.
BTR_EXPORT void set_isa(const std::string& name);

// Whether this CPU has BMI2's pdep and pext only as microcode, a bit at a time (AMD Zen 1 and 2).
BTR_EXPORT bool deposits_slowly();

}  // namespace btr
