// The projections of checking.h.

#include <algorithm>
#include <optional>
#include <vector>

#include "checking.h"
#include "core/tuning.h"
#include "matmul/matmul.h"

namespace btr {
namespace {

double gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.141592653589793) * (x + 0.044715 * x * x * x))); }

// `type`: f32 in both layouts, or integers channel-major. Gated, n are the columns of the weight, half of them of out.
void check_matmul(int64_t m, int64_t n, int64_t d, DType type, bool channel_major, bool gated, const std::string& at) {
  const int64_t groups = groups_for(d);
  auto bits = random_bytes(m * bytes_for(d));
  auto weight = random_floats(n * d), scale = random_floats(d), bias = random_floats(n), token_scale = random_floats(m);
  auto factors = random_floats(groups * n), out = exact<float>(gated ? m * n / 2 : m * n);
  auto bytes = exact<int8_t>(n * d);
  auto shorts = exact<int16_t>(n * d);
  for (int64_t i = 0; i < n * d; ++i) {
    bytes[size_t(i)] = int8_t(random_bits() % 255 - 127);
    shorts[size_t(i)] = int16_t(random_bits() % 1023 - 511);
  }
  const bool floats = type == DType::f32;
  MatmulArgs args{};
  args.bits = bits.get();
  args.weight = type == DType::i8    ? static_cast<const void*>(bytes.get())
                : type == DType::i16 ? static_cast<const void*>(shorts.get())
                                     : weight.get();
  args.weight_type = type;
  args.channel_major = channel_major;
  args.scale = channel_major ? nullptr : scale.get();
  args.factors = floats ? nullptr : factors.get();
  args.factor_blocks = floats ? 0 : type == DType::i8 ? 1 : groups;
  args.bias = bias.get();
  args.token_scale = token_scale.get();
  args.out = out.get();
  args.m = m, args.n = gated ? n / 2 : n, args.d = d, args.gated = gated;
  const MatmulPlan plan = plan_matmul(args, 3);
  matmul_kernels().run(args, plan, 0, plan.pieces());
  bool ok = true;
  std::vector<double> values(static_cast<size_t>(n)), sizes(static_cast<size_t>(n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, size = 0;
      for (int64_t c = 0; c < d; ++c) {
        const size_t at_weight = size_t(channel_major ? c * n + j : j * d + c);
        const double v = type == DType::i8    ? bytes[at_weight] * double(factors[size_t(j)])
                         : type == DType::i16 ? shorts[at_weight] * double(factors[size_t(c / 64 * n + j)])
                                              : weight[at_weight] * (channel_major ? 1.0 : double(scale[size_t(c)]));
        sum += bit(bits.get() + i * bytes_for(d), c) ? v : -v;
        size += std::fabs(v);
      }
      values[size_t(j)] = sum * token_scale[size_t(i)] + bias[size_t(j)];
      sizes[size_t(j)] = 1e-6 * (size + 1);
    }
    for (int64_t j = 0; j < args.n; ++j) {
      double value = values[size_t(j)], size = sizes[size_t(j)];
      if (gated) {
        const double linear = values[size_t(args.n + j)];
        size = 2 * (size * std::fabs(linear) + sizes[size_t(args.n + j)] * std::fabs(gelu(value)));
        value = gelu(value) * linear;
      }
      ok &= close(out[size_t(i * args.n + j)], value, size);
    }
  }
  expect(ok, "matmul " + at);
}

void check_all_matmuls(int64_t m, int64_t n, int64_t d, const std::string& name) {
  const std::string at = name + " m " + std::to_string(m) + " n " + std::to_string(n) + " d " + std::to_string(d);
  for (bool gated : {false, true}) {
    if (gated && n % 2) continue;
    const std::string form = at + (gated ? " gated" : "");
    check_matmul(m, n, d, DType::f32, false, gated, form + " row-major");
    check_matmul(m, n, d, DType::f32, true, gated, form + " channel-major");
    check_matmul(m, n, d, DType::i16, true, gated, form + " int16");
    check_matmul(m, n, d, DType::i8, true, gated, form + " int8");
  }
}

// Gated, n are the rows of the weight, twice the columns of out.
void check_linear(int64_t m, int64_t n, int64_t d, bool gated, bool around, const std::string& at) {
  const int64_t columns = gated ? n / 2 : n;
  auto x = random_floats(m * d), weight = random_floats(n * d), norm = random_floats(d);
  auto residual = random_floats(m * columns), out = exact<float>(m * columns);
  LinearArgs args{};
  args.x = x.get(), args.weight = weight.get(), args.out = out.get();
  args.eps = 1e-6f;
  args.m = m, args.n = columns, args.d = d, args.gated = gated;
  if (around) args.norm = norm.get(), args.residual = residual.get();
  const MatmulPlan plan = plan_linear(args, 3);
  matmul_kernels().run_linear(args, plan, 0, plan.pieces());
  bool ok = true;
  for (int64_t i = 0; i < m; ++i) {
    double squares = 0;
    for (int64_t c = 0; c < d; ++c) squares += std::pow(double(x[size_t(i * d + c)]), 2) / double(d);
    const double factor = around ? 1 / std::sqrt(squares + 1e-6) : 1;
    const auto product = [&](int64_t j, double& size) {
      double sum = 0;
      size = 0;
      for (int64_t c = 0; c < d; ++c) {
        const double v = x[size_t(i * d + c)] * factor * (around ? norm[size_t(c)] : 1.0f) * weight[size_t(j * d + c)];
        sum += v;
        size += 1e-6 * std::fabs(v);
      }
      return sum;
    };
    for (int64_t j = 0; j < columns; ++j) {
      double size = 0, linear_size = 0, value = product(j, size);
      if (gated) {
        const double linear = product(columns + j, linear_size);
        size = 2 * (size * std::fabs(linear) + linear_size * std::fabs(gelu(value)));
        value = gelu(value) * linear;
      }
      if (around) value += residual[size_t(i * columns + j)];
      ok &= close(out[size_t(i * columns + j)], value, size + 1e-6);
    }
  }
  expect(ok, "linear " + at);
}

void check_all_linears(int64_t m, int64_t n, int64_t d, const std::string& isa) {
  const std::string at = isa + " m " + std::to_string(m) + " n " + std::to_string(n) + " d " + std::to_string(d);
  for (bool around : {false, true}) {
    check_linear(m, n, d, false, around, at);
    if (n % 2 == 0) check_linear(m, n, d, true, around, at + " gated");
  }
}

}  // namespace

void check_projections(const std::string& isa) {
  for (int64_t d : {1, 63, 64, 65, 300})
    for (int64_t m : {1, 2, 5, 13, 22})
      for (int64_t n : {1, 17, 50, 66, 260}) {
        check_all_matmuls(m, n, d, isa);
        check_all_linears(m, n, d, isa);
      }
  set_tuning("matmul.streaming_bytes", 0);
  for (const char* bits : {"4", "5"}) {
    set_tuning("matmul.wide_tables_tokens", *bits == '4' ? 1 << 20 : 0);
    check_all_matmuls(21, 128, 70, isa + " streaming, tables of " + bits);
  }
  set_tuning("matmul.streaming_bytes", std::nullopt);
  set_tuning("matmul.wide_tables_tokens", std::nullopt);
  set_tuning("matmul.block_tokens", 1000);
  check_all_matmuls(1030, 18, 65, isa + " two blocks");
  set_tuning("matmul.block_tokens", std::nullopt);
  check_all_linears(40, 130, 33, isa + " three blocks");
}

}  // namespace btr
