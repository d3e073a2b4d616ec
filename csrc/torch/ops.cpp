// Registers the kernels as `torch.ops.btr_native.*` through torch's stable ABI, so that one binary loads in torch 2.11
// and newer. These are the inner operators: `btr_kernels/ops` checks arguments for users and allocates results;
// here it is only made sure that no call can touch memory it should not, or never end. Threads are torch's own.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "bits/bits.h"
#include "hamming/hamming.h"
#include "matmul/matmul.h"
#include "merging/merging.h"
#include "torch/arguments.h"

#ifdef BTR_HAVE_CUDA
#include <torch/csrc/stable/accelerator.h>

#include "cuda/launchers.h"

// Weak, since the CPU build of torch lacks it and this library must load there too.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));
#endif

namespace btr {
namespace {

using Optional = std::optional<Tensor>;

// Work below this many bytes, or multiply-adds, is done sooner by one thread than it is handed out (and a thread that
// waits for another one spins, which on a busy machine costs both).
constexpr int64_t kBytesPerThread = 32 * 1024;
constexpr int64_t kProductsPerThread = 1024 * 1024;
// Results larger than this leave the caches before they are read again: a choice below common last-level caches, still
// to be tuned by measurement.
constexpr int64_t kStreamingBytes = 16 * 1024 * 1024;

// How many items of `cost` make up `enough` work for a thread.
int64_t grain_of(int64_t enough, int64_t cost) { return std::max<int64_t>(enough / std::max<int64_t>(cost, 1), 1); }

template <typename F>
void parallel_rows(int64_t rows, int64_t bytes_a_row, F&& f) {
  parallel(rows, grain_of(kBytesPerThread, bytes_a_row), f);
}

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
  const bool streaming = rows * row_bytes > kStreamingBytes;
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
  parallel_rows(rows, row_bytes, [&](int64_t begin, int64_t end) {
    bits_kernels().sign_scale(in + begin * row_bytes, dtype, end - begin, d, layer, s, y + begin * row_bytes);
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

void unpack_matmul(Tensor bits, Tensor weight, Optional scale, Optional row_scale, Optional bias, Optional token_scale,
                   Tensor out) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight: expected (N, d)");
  MatmulArgs args{};
  args.n = weight.size(0);
  args.d = weight.size(1);
  STD_TORCH_CHECK(args.d >= 1, "weight: expected (N, d) with d >= 1");
  args.m = rows_of(bits);
  args.weight_type = dtype_of("weight", weight, {DType::f32, DType::f16, DType::bf16, DType::i8});
  args.out_type = dtype_of("out", out, {DType::f32, DType::f16, DType::bf16});
  args.bits = read<uint8_t>("bits", bits, ScalarType::Byte, args.m * bytes_for(args.d));
  args.weight = read<char>("weight", weight, args.n * args.d);
  args.scale = read_floats("scale", scale, args.d);
  args.row_scale = read_floats("row_scale", row_scale, args.n);
  args.bias = read_floats("bias", bias, args.n);
  args.token_scale = read_floats("token_scale", token_scale, args.m);
  args.out = write<char>("out", out, args.m * args.n);
  if (args.m == 0 || args.n == 0) return;
  const MatmulPlan plan = plan_matmul(args, int(torch::stable::get_num_threads()));
  const int64_t products = args.m * args.n * args.d / plan.pieces();
  parallel(plan.pieces(), grain_of(kProductsPerThread, products), [&](int64_t begin, int64_t end) { matmul_kernels().run(args, plan, begin, end); });
}

void hamming_distance(Tensor a, Tensor b, Tensor out) {
  STD_TORCH_CHECK(out.dim() >= 2, "out: expected (..., m, n)");
  const int64_t m = out.size(out.dim() - 2), n = last_size(out), w = token_size("a", a);
  int64_t batch = 1;
  for (int64_t i = 0; i + 2 < out.dim(); ++i) batch *= out.size(i);
  const auto* pa = read<uint8_t>("a", a, ScalarType::Byte, batch * m * w);
  const auto* pb = read<uint8_t>("b", b, ScalarType::Byte, batch * n * w);
  auto* distances = write<int32_t>("out", out, ScalarType::Int, batch * m * n);
  if (n == 0) return;
  // Rows of all batches are split alike; a range may start and end within a batch.
  parallel_rows(batch * m, n * w, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t item = i / m, stop = std::min(end, (item + 1) * m);
      hamming_kernels().distance(pa + i * w, stop - i, pb + item * n * w, n, w, distances + i * n);
      i = stop;
    }
  });
}

void hamming_topk(Tensor a, Tensor b, Tensor distances, Tensor indices) {
  const int64_t m = rows_of(a), n = rows_of(b), w = token_size("a", a), k = last_size(distances);
  STD_TORCH_CHECK(k >= 1 && k <= n, "k: expected 1 to ", n, ", got ", k);
  const auto* pa = read<uint8_t>("a", a, ScalarType::Byte, m * w);
  const auto* pb = read<uint8_t>("b", b, ScalarType::Byte, n * w);
  auto* dist = write<int32_t>("distances", distances, ScalarType::Int, m * k);
  auto* index = write<int64_t>("indices", indices, ScalarType::Long, m * k);
  parallel_rows(m, n * w, [&](int64_t begin, int64_t end) {
    hamming_kernels().topk(pa + begin * w, end - begin, pb, n, w, k, dist + begin * k, index + begin * k);
  });
}

// Where the passages lie among the rows of a tensor: at equal distances, or at the offsets of packed ones.
struct Passages {
  int64_t count, rows_each;
  const int64_t* offsets;  // count + 1 of them, or null

  Passages(const char* name, const Tensor& rows, const Optional& cu_seqlens, int64_t total) {
    if (!cu_seqlens) {
      STD_TORCH_CHECK(rows.dim() >= 2, name, ": expected (B, n, ...)");
      count = rows.size(0);
      rows_each = rows.size(1);
      offsets = nullptr;
      return;
    }
    count = std::max<int64_t>(cu_seqlens->numel() - 1, 0);
    rows_each = 0;
    offsets = read<int64_t>("cu_seqlens", *cu_seqlens, ScalarType::Long, count + 1);
    for (int64_t i = 0; i < count; ++i)
      STD_TORCH_CHECK(0 <= offsets[i] && offsets[i] <= offsets[i + 1] && offsets[i + 1] <= total, name,
                      ": expected cu_seqlens that never decrease, within 0 to ", total);
  }
  int64_t begin(int64_t i) const { return offsets ? offsets[i] : i * rows_each; }
  int64_t length(int64_t i) const { return offsets ? offsets[i + 1] - offsets[i] : rows_each; }
};

void match_tokens(Tensor bits, Tensor keep, Optional lengths, Optional cu_seqlens, Tensor slot, Tensor new_lengths) {
  const int64_t w = token_size("bits", bits), tokens = rows_of(bits);
  const Passages passages("bits", bits, cu_seqlens, tokens);
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, tokens * w);
  const auto* wanted = read<int64_t>("keep", keep, ScalarType::Long, passages.count);
  const auto* given = lengths ? read<int64_t>("lengths", *lengths, ScalarType::Long, passages.count) : nullptr;
  auto* slots = write<int32_t>("slot", slot, ScalarType::Int, tokens);
  auto* left = write<int32_t>("new_lengths", new_lengths, ScalarType::Int, passages.count);
  const int64_t mean_length = tokens / std::max<int64_t>(passages.count, 1);
  const int64_t bytes_compared = mean_length * mean_length / 4 * w;
  parallel(passages.count, grain_of(kBytesPerThread, bytes_compared), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t rows = passages.length(i), start = passages.begin(i);
      const int64_t length = given ? std::clamp<int64_t>(given[i], 0, rows) : rows;
      left[i] = int32_t(merging_kernels().match(in + start * w, length, w, wanted[i], slots + start));
      std::fill(slots + start + length, slots + start + rows, -1);
    }
  });
}

// Votes are counted in int32: no size may be negative, and their sum must fit.
const int32_t* read_sizes(const Optional& sizes, int64_t tokens) {
  if (!sizes) return nullptr;
  const auto* values = read<int32_t>("sizes", *sizes, ScalarType::Int, tokens);
  int64_t total = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    STD_TORCH_CHECK(values[t] >= 0, "sizes: expected no negative value, got ", values[t]);
    total += values[t];
  }
  STD_TORCH_CHECK(total <= INT32_MAX, "sizes: expected a sum below 2^31, got ", total);
  return values;
}

// Calls merge(first token, tokens, first result row, result rows) for every passage, after checking its slots.
template <typename F>
void merge_passages(const Tensor& tokens, const Tensor& slot, const Optional& cu_in, const Optional& cu_out,
                    const Tensor& out, const Tensor& new_sizes, F&& merge) {
  STD_TORCH_CHECK(cu_in.has_value() == cu_out.has_value(), "cu_in, cu_out: expected both or neither");
  const int64_t total = rows_of(tokens), total_out = rows_of(out);
  const Passages from("tokens", tokens, cu_in, total), to("out", out, cu_out, total_out);
  STD_TORCH_CHECK(from.count == to.count, "out: expected ", from.count, " passages, got ", to.count);
  const auto* slots = read<int32_t>("slot", slot, ScalarType::Int, total);
  auto* sizes = write<int32_t>("new_sizes", new_sizes, ScalarType::Int, total_out);
  for (int64_t i = 0; i < from.count; ++i)
    for (int64_t t = from.begin(i); t < from.begin(i) + from.length(i); ++t)
      STD_TORCH_CHECK(slots[t] >= -1 && slots[t] < to.length(i), "slot: expected -1 to ", to.length(i) - 1, ", got ",
                      slots[t]);
  const int64_t row_bytes = last_size(out) * int64_t(out.element_size());
  const int64_t mean_bytes = total * row_bytes / std::max<int64_t>(from.count, 1);
  parallel(from.count, grain_of(kBytesPerThread, mean_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      merge(from.begin(i), from.length(i), slots + from.begin(i), to.begin(i), to.length(i), sizes + to.begin(i));
  });
  // Packed results may have spare rows behind the last passage.
  const int64_t used = to.offsets ? to.offsets[to.count] : total_out;
  auto* bytes = static_cast<char*>(out.mutable_data_ptr());
  std::fill(bytes + used * row_bytes, bytes + total_out * row_bytes, char(0));
  std::fill(sizes + used, sizes + total_out, 0);
}

void merge_bits(Tensor bits, Tensor slot, Optional sizes, Optional cu_in, Optional cu_out, Tensor out,
                Tensor new_sizes) {
  const int64_t w = token_size("bits", bits), rows = rows_of(bits);
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, rows * w);
  const auto* size = read_sizes(sizes, rows);
  auto* merged = write<uint8_t>("out", out, ScalarType::Byte, rows_of(out) * w);
  merge_passages(bits, slot, cu_in, cu_out, out, new_sizes,
                 [&](int64_t token, int64_t tokens, const int32_t* slots, int64_t row, int64_t result_rows,
                     int32_t* result_sizes) {
                   merging_kernels().merge_bits(in + token * w, tokens, w, slots, size ? size + token : nullptr,
                                                result_rows, merged + row * w, result_sizes);
                 });
}

void merge_tokens(Tensor x, Tensor slot, Optional sizes, Optional cu_in, Optional cu_out, Tensor out,
                  Tensor new_sizes) {
  const int64_t d = token_size("x", x), rows = rows_of(x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16});
  const int64_t row_bytes = d * size_of(dtype);
  const auto* in = read<char>("x", x, rows * d);
  const auto* size = read_sizes(sizes, rows);
  auto* merged = write<char>("out", out, x.scalar_type(), rows_of(out) * d);
  merge_passages(x, slot, cu_in, cu_out, out, new_sizes,
                 [&](int64_t token, int64_t tokens, const int32_t* slots, int64_t row, int64_t result_rows,
                     int32_t* result_sizes) {
                   merging_kernels().merge_floats(in + token * row_bytes, dtype, tokens, d, slots,
                                                  size ? size + token : nullptr, result_rows, merged + row * row_bytes,
                                                  result_sizes);
                 });
}

#ifdef BTR_HAVE_CUDA

// The current stream of the current device, where torch is built with CUDA.
cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch(const char* kernel, int error) {
  STD_TORCH_CHECK(error == 0, kernel, ": the launch failed with CUDA error ", error);
}

void pack_bits_cuda(Tensor x, Tensor out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t d = token_size("x", x), rows = rows_of(x);
  const DType dtype = dtype_of("x", x, {DType::f32, DType::f16, DType::bf16, DType::boolean});
  const auto* in = read<char>("x", x, rows * d);
  auto* bits = write<uint8_t>("out", out, ScalarType::Byte, rows * bytes_for(d));
  check_launch("pack_bits", btr_cuda_pack_bits(in, int(dtype), rows, d, bits, current_stream(x)));
}

void unpack_bits_cuda(Tensor bits, Optional scale, Optional bias, Optional token_scale, Tensor out) {
  const torch::stable::accelerator::DeviceGuard guard(bits.get_device_index());
  const int64_t d = token_size("out", out), rows = rows_of(out);
  const DType dtype = dtype_of("out", out, {DType::f32, DType::f16, DType::bf16});
  const auto* in = read<uint8_t>("bits", bits, ScalarType::Byte, rows * bytes_for(d));
  const auto *s = read_floats("scale", scale, d), *b = read_floats("bias", bias, d);
  const auto* ts = read_floats("token_scale", token_scale, rows);
  auto* y = write<char>("out", out, rows * d);
  check_launch("unpack_bits", btr_cuda_unpack_bits(in, rows, d, s, b, ts, y, int(dtype), current_stream(bits)));
}

#endif  // BTR_HAVE_CUDA

STABLE_TORCH_LIBRARY(btr_native, m) {
  m.def("pack_bits(Tensor x, Tensor(a!) out) -> ()");
  m.def("unpack_bits(Tensor bits, Tensor? scale, Tensor? bias, Tensor? token_scale, Tensor(a!) out) -> ()");
  m.def("binarize(Tensor x, bool layer, float eps, Tensor(a!) bits, Tensor(b!)? magnitude) -> ()");
  m.def("sign_scale(Tensor x, Tensor scale, bool layer, Tensor(a!) out) -> ()");
  m.def("sign_scale_backward(Tensor grad, Tensor x, Tensor scale, int norm, float eps, bool tanh, float limit, "
        "Tensor(a!) grad_x, Tensor(b!) grad_scale) -> ()");
  m.def("unpack_matmul(Tensor bits, Tensor weight, Tensor? scale, Tensor? row_scale, Tensor? bias, "
        "Tensor? token_scale, Tensor(a!) out) -> ()");
  m.def("hamming_distance(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("hamming_topk(Tensor a, Tensor b, Tensor(a!) distances, Tensor(b!) indices) -> ()");
  m.def("match_tokens(Tensor bits, Tensor keep, Tensor? lengths, Tensor? cu_seqlens, Tensor(a!) slot, "
        "Tensor(b!) new_lengths) -> ()");
  m.def("merge_bits(Tensor bits, Tensor slot, Tensor? sizes, Tensor? cu_in, Tensor? cu_out, Tensor(a!) out, "
        "Tensor(b!) new_sizes) -> ()");
  m.def("merge_tokens(Tensor x, Tensor slot, Tensor? sizes, Tensor? cu_in, Tensor? cu_out, Tensor(a!) out, "
        "Tensor(b!) new_sizes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(btr_native, CPU, m) {
  m.impl("pack_bits", TORCH_BOX(&pack_bits));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits));
  m.impl("binarize", TORCH_BOX(&binarize));
  m.impl("sign_scale", TORCH_BOX(&sign_scale));
  m.impl("sign_scale_backward", TORCH_BOX(&sign_scale_backward));
  m.impl("unpack_matmul", TORCH_BOX(&unpack_matmul));
  m.impl("hamming_distance", TORCH_BOX(&hamming_distance));
  m.impl("hamming_topk", TORCH_BOX(&hamming_topk));
  m.impl("match_tokens", TORCH_BOX(&match_tokens));
  m.impl("merge_bits", TORCH_BOX(&merge_bits));
  m.impl("merge_tokens", TORCH_BOX(&merge_tokens));
}

#ifdef BTR_HAVE_CUDA
STABLE_TORCH_LIBRARY_IMPL(btr_native, CUDA, m) {
  m.impl("pack_bits", TORCH_BOX(&pack_bits_cuda));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits_cuda));
}
#endif

}  // namespace
}  // namespace btr
