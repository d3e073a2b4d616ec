// The module `btr_kernels._C`: what is not a PyTorch operator. CPU features and instruction-set forcing, what was
// built, and the kernels for NumPy arrays and raw pointers, for programs that do not use PyTorch.
//
// These entry points run on the calling thread, without the GIL.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bits/bits.h"
#include "core/isa.h"
#include "core/limits.h"
#include "core/tuning.h"
#include "hamming/hamming.h"
#include "matmul/matmul.h"

namespace py = pybind11;

namespace btr {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

[[noreturn]] void wrong(const std::string& message) { throw py::value_error(message); }

int64_t last_size(const char* name, const py::array& a) {
  if (a.ndim() < 1 || a.shape(a.ndim() - 1) < 1) wrong(std::string(name) + ": expected shape (..., d) with d >= 1");
  return a.shape(a.ndim() - 1);
}

template <typename T>
py::array_t<T> with_last_size(const py::array& like, int64_t size) {
  std::vector<py::ssize_t> shape(like.shape(), like.shape() + like.ndim());
  shape.back() = size;
  return py::array_t<T>(shape);
}

DType float_or_bool(const py::array& x) {
  const py::dtype type = x.dtype();
  if (type.byteorder() == '>') throw py::type_error("x: expected native byte order, got " + std::string(py::str(type)));
  if (type.kind() == 'b') return DType::boolean;
  if (type.kind() == 'f' && type.itemsize() == 4) return DType::f32;
  if (type.kind() == 'f' && type.itemsize() == 2) return DType::f16;
  throw py::type_error("x: expected dtype float32, float16 or bool, got " + std::string(py::str(type)));
}

Bytes packed(const char* name, const py::array& bits) {
  if (!py::isinstance<py::array_t<uint8_t>>(bits))
    throw py::type_error(std::string(name) + ": expected dtype uint8, got " + std::string(py::str(bits.dtype())));
  return Bytes::ensure(bits);
}

py::array_t<uint8_t> pack_bits(py::array x) {
  const DType dtype = float_or_bool(x);
  const int64_t d = last_size("x", x);
  x = py::array::ensure(x, py::array::c_style);
  auto out = with_last_size<uint8_t>(x, bytes_for(d));
  const void* in = x.data();
  uint8_t* bits = out.mutable_data();
  const int64_t rows = x.size() / d;
  py::gil_scoped_release release;
  bits_kernels().pack(in, dtype, rows, d, bits);
  return out;
}

py::array_t<float> unpack_bits(const py::array& bits, int64_t d, const py::object& scale) {
  const Bytes in = packed("bits", bits);
  if (d < 1 || last_size("bits", in) != bytes_for(d))
    wrong("bits: expected ceil(d / 8) bytes in the last dimension, d >= 1, got d = " + std::to_string(d));
  Floats s;
  if (!scale.is_none()) {
    s = Floats::ensure(scale);
    if (!s || s.ndim() != 1 || s.size() != d) wrong("scale: expected shape (d,) of float32");
  }
  auto out = with_last_size<float>(in, d);
  const uint8_t* p = in.data();
  const float* factors = scale.is_none() ? nullptr : s.data();
  float* y = out.mutable_data();
  const int64_t rows = in.size() / bytes_for(d);
  py::gil_scoped_release release;
  bits_kernels().unpack(p, rows, d, factors, nullptr, nullptr, y, DType::f32, false);
  return out;
}

py::array_t<int32_t> hamming_distance(const py::array& a, const py::array& b) {
  const Bytes pa = packed("a", a), pb = packed("b", b);
  if (pa.ndim() != 2 || pb.ndim() != 2 || pa.shape(1) != pb.shape(1) || pa.shape(1) < 1)
    wrong("b: expected shapes (m, w) and (n, w) with w >= 1");
  const int64_t m = pa.shape(0), n = pb.shape(0), w = pa.shape(1);
  py::array_t<int32_t> out({m, n});
  const uint8_t *ra = pa.data(), *rb = pb.data();
  int32_t* distances = out.mutable_data();
  py::gil_scoped_release release;
  hamming_kernels().distance(ra, m, rb, n, w, distances, false);
  return out;
}

py::array_t<float> unpack_matmul(const py::array& bits, const Floats& weight) {
  const Bytes in = packed("bits", bits);
  if (weight.ndim() != 2 || weight.shape(1) < 1 || last_size("bits", in) != bytes_for(weight.shape(1)))
    wrong("weight: expected shape (N, d) with ceil(d / 8) the last dimension of bits");
  MatmulArgs args{};
  args.n = weight.shape(0);
  args.d = weight.shape(1);
  args.m = in.size() / bytes_for(args.d);
  auto out = with_last_size<float>(in, args.n);
  args.bits = in.data();
  args.weight = weight.data();
  args.out = out.mutable_data();
  if (args.m == 0 || args.n == 0) return out;
  py::gil_scoped_release release;
  const MatmulPlan plan = plan_matmul(args, 1);
  matmul_kernels().run(args, plan, 0, plan.pieces());
  return out;
}

void pack_bits_raw(uintptr_t x, const std::string& dtype, int64_t rows, int64_t d, uintptr_t out) {
  const DType type = dtype == "float32"    ? DType::f32
                     : dtype == "float16"  ? DType::f16
                     : dtype == "bfloat16" ? DType::bf16
                     : dtype == "bool"     ? DType::boolean
                                           : throw py::value_error("dtype: expected float32, float16, bfloat16 or "
                                                                   "bool, got '" + dtype + "'");
  if (rows < 0 || d < 1) wrong("rows, d: expected rows >= 0 and d >= 1");
  py::gil_scoped_release release;
  bits_kernels().pack(reinterpret_cast<const void*>(x), type, rows, d, reinterpret_cast<uint8_t*>(out));
}

py::dict memory_ways_by_kind() {
  py::dict ways;
  for (const MemoryWay& way : memory_ways()) ways[py::str(way.kind)] = py::list();
  for (const MemoryWay& way : memory_ways()) ways[py::str(way.kind)].cast<py::list>().append(way.name);
  return ways;
}

void memory_passes_raw(const std::string& way, uintptr_t destination, uintptr_t source, int64_t bytes, int64_t passes) {
  if (bytes < 0 || bytes % kMemoryBlock || destination % 64 || source % 64)
    wrong("bytes, addresses: expected multiples of 4096 and of 64");
  py::gil_scoped_release release;
  memory_passes(way, reinterpret_cast<void*>(destination), reinterpret_cast<const void*>(source), bytes, passes);
}

py::dict build_info() {
  py::dict info;
  std::vector<std::string> isas;
  for (const IsaStatus& isa : built_isas()) isas.push_back(isa.name);
  info["isas"] = isas;
  info["cuda_architectures"] = std::string(BTR_CUDA_ARCHITECTURES);
  info["cuda_toolkit"] = std::string(BTR_CUDA_TOOLKIT);
  info["compiler"] = std::string(BTR_COMPILER);
  info["torch"] = std::string(BTR_TORCH_VERSION);
  return info;
}

py::dict isa_lacks() {
  py::dict lacks;
  for (const IsaStatus& isa : built_isas()) lacks[py::str(isa.name)] = isa.lacks;
  return lacks;
}

py::dict thresholds() {
  py::dict all;
  for (const ThresholdInfo& threshold : list_tuning()) {
    py::dict row;
    row["value"] = threshold.value;
    row["default"] = threshold.default_value;
    row["least"] = threshold.least;
    row["selects"] = threshold.selects;
    all[threshold.name] = row;
  }
  return all;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU features, build information and the kernels for NumPy arrays and raw pointers.";
  m.def("isa", &isa_name, "Name of the instruction set in use.");
  m.def("isas", &runnable_isas, "Names of the instruction sets that this CPU runs, worst first.");
  m.def("set_isa", &set_isa, py::arg("name"), "Forces an instruction set for the whole process; ValueError if it does not run here.");
  m.def("isa_lacks", &isa_lacks, "Every instruction set that was built, worst first, with the CPU features that are missing here, '' if it runs.");
  m.def("tuning", &thresholds, "The thresholds that choose between kernels, for the instruction set in use: name -> value, default, least, selects.");
  m.def("set_tuning", &set_tuning, py::arg("name"), py::arg("value"),
        "Overrides a threshold for the whole process, None restores the default; ValueError if there is no such threshold or value.");
  m.def("build_info", &build_info, "What was built: instruction sets, CUDA architectures and toolkit ('' without CUDA), compiler, torch version.");
  m.def("pack_bits", &pack_bits, py::arg("x"),
        "Signs of x (..., d) float32, float16 or bool -> uint8 (..., ceil(d / 8)), as btr_kernels.pack_bits.");
  m.def("unpack_bits", &unpack_bits, py::arg("bits"), py::arg("d"), py::arg("scale") = py::none(),
        "uint8 (..., ceil(d / 8)) -> scale * +-1, float32 (..., d), as btr_kernels.unpack_bits.");
  m.def("unpack_matmul", &unpack_matmul, py::arg("bits"), py::arg("weight"),
        "uint8 (..., ceil(d / 8)) times weight (N, d) transposed -> float32 (..., N), as btr_kernels.unpack_matmul.");
  m.def("hamming_distance", &hamming_distance, py::arg("a"), py::arg("b"),
        "uint8 (m, w), (n, w) -> int32 (m, n), as btr_kernels.hamming_distance.");
  m.def("pack_bits_raw", &pack_bits_raw, py::arg("x"), py::arg("dtype"), py::arg("rows"), py::arg("d"), py::arg("out"),
        "pack_bits on addresses: rows x d contiguous values of dtype at x -> rows x ceil(d / 8) bytes at out. "
        "The caller answers for both being valid.");
  m.def("memory_ways", &memory_ways_by_kind, "Loops that move memory, as {'read' | 'write' | 'copy': [name]}.");
  m.def("memory_passes", &memory_passes_raw, py::arg("way"), py::arg("destination"), py::arg("source"), py::arg("bytes"),
        py::arg("passes"),
        "Moves bytes, a multiple of 4096, passes times in one of the ways of memory_ways. The caller answers for the "
        "addresses, multiples of 64; the one that a way does not use may be 0.");
  m.def("multiply_adds", &multiply_adds, py::arg("rounds"), py::call_guard<py::gil_scoped_release>(),
        "Runs rounds of float32 multiply-adds in registers; how many operations they were, 2 each.");
}

}  // namespace btr
