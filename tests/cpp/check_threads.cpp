// Every kernel family from several threads at once, while another thread changes the instruction set and thresholds:
// the same inputs must give the same bytes. Built with the thread sanitizer (`make sanitize`), which also finds races
// that change no result.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "attention/attention.h"
#include "bits/bits.h"
#include "core/isa.h"
#include "core/tuning.h"
#include "hamming/hamming.h"
#include "matmul/matmul.h"
#include "merging/merging.h"

using namespace btr;

namespace {

constexpr int64_t kTokens = 24, kD = 200, kW = (kD + 7) / 8, kColumns = 20, kKept = 9, kStored = 90;

struct Results {
  std::vector<uint8_t> exact;  // equal on every instruction set
  std::vector<float> rounded;  // equal but for the order of sums

  template <typename T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
    exact.insert(exact.end(), bytes, bytes + values.size() * sizeof(T));
  }
  void add_rounded(const std::vector<float>& values) { rounded.insert(rounded.end(), values.begin(), values.end()); }

  bool agrees_with(const Results& other) const {
    bool same = exact == other.exact && rounded.size() == other.rounded.size();
    for (size_t i = 0; same && i < rounded.size(); ++i)
      same = std::fabs(rounded[i] - other.rounded[i]) <= 1e-3f * (1 + std::fabs(other.rounded[i]));
    return same;
  }
};

struct Inputs {
  std::vector<float> x = std::vector<float>(kTokens * kD), weight = std::vector<float>(kColumns * kD);
  std::vector<float> scale = std::vector<float>(kD, 0.5f);

  Inputs() {
    uint32_t state = 12345;
    const auto next = [&] { return float(int32_t(state = state * 1664525 + 1013904223)) * 0x1p-31f; };
    for (float& value : x) value = next();
    for (float& value : weight) value = next();
  }
};

// Each family once; every instruction set in use is read again for each call.
Results run_all(const Inputs& in) {
  Results results;
  std::vector<uint8_t> bits(kTokens * kW), centred(kTokens * kW), merged(kKept * kW);
  std::vector<float> y(kTokens * kD), magnitude(kTokens), grad_x(kTokens * kD), grad_scale(kD), mean(kKept * kD);
  bits_kernels().pack(in.x.data(), DType::f32, kTokens, kD, bits.data());
  results.add(bits);
  bits_kernels().unpack(bits.data(), kTokens, kD, in.scale.data(), nullptr, nullptr, y.data(), DType::f32, true);
  results.add(y);
  bits_kernels().binarize(in.x.data(), DType::f32, kTokens, kD, true, 1e-6, centred.data(), magnitude.data());
  results.add_rounded(magnitude);
  bits_kernels().sign_scale_backward(y.data(), in.x.data(), DType::f32, kTokens, kD, in.scale.data(),
                                     {Norm::rms, 1e-6, SignGradient::tanh, 2.0}, grad_x.data(), grad_scale.data());
  results.add_rounded(grad_x);

  std::vector<int64_t> ids(kTokens);
  for (int64_t t = 0; t < kTokens; ++t) ids[size_t(t)] = kTokens - 1 - t;
  const Masks masks{bits.data(), kTokens, kW};
  std::vector<uint8_t> codes(kTokens * bytes_for(kStored)), expanded(kTokens * kW);
  bits_kernels().compress(bits.data(), ids.data(), kTokens, masks, kStored, codes.data());
  bits_kernels().expand(codes.data(), bytes_for(kStored), ids.data(), kTokens, masks, bits.data(), expanded.data());
  results.add(codes);
  results.add(expanded);

  std::vector<float> product(kTokens * kColumns);
  MatmulArgs args{};
  args.bits = bits.data();
  args.weight = in.weight.data();
  args.weight_type = args.out_type = DType::f32;
  args.out = product.data();
  args.m = kTokens, args.n = kColumns, args.d = kD;
  const MatmulPlan plan = plan_matmul(args, 2);
  matmul_kernels().run(args, plan, 0, plan.pieces());
  results.add_rounded(product);
  LinearArgs linear{};
  linear.x = in.x.data(), linear.norm = in.scale.data(), linear.weight = in.weight.data(), linear.out = product.data();
  linear.eps = 1e-6f, linear.m = kTokens, linear.n = kColumns, linear.d = kD;
  const MatmulPlan linear_plan = plan_linear(linear, 2);
  matmul_kernels().run_linear(linear, linear_plan, 0, linear_plan.pieces());
  results.add_rounded(product);

  AttentionArgs attention{};
  attention.query = attention.keys = attention.values = in.x.data(), attention.out = y.data();
  attention.batch = 1, attention.tokens = attention.count = kTokens, attention.heads = 4, attention.head_size = kD / 4;
  std::vector<float> partial(size_t(2 * kTokens * attention_room(attention)));
  attention_kernels().run(attention, 2, 0, 2 * kTokens, partial.data());
  attention_kernels().combine(attention, 2, 0, kTokens, partial.data());
  results.add_rounded(y);

  std::vector<int32_t> distances(kTokens * kTokens), nearest(kTokens * 3), slot(kTokens), sizes(kKept);
  std::vector<int64_t> index(kTokens * 3);
  hamming_kernels().distance(bits.data(), kTokens, bits.data(), kTokens, kW, distances.data(), true);
  results.add(distances);
  hamming_kernels().topk(bits.data(), kTokens, bits.data(), kTokens, kW, 3, nearest.data(), index.data());
  results.add(nearest);
  results.add(index);

  merging_kernels().match(bits.data(), kTokens, kW, kKept, slot.data());
  results.add(slot);
  merging_kernels().merge_bits(bits.data(), kTokens, kW, slot.data(), nullptr, kKept, merged.data(), sizes.data());
  results.add(merged);
  merging_kernels().merge_floats(in.x.data(), DType::f32, kTokens, kD, slot.data(), nullptr, kKept, mean.data(),
                                 sizes.data(), true);
  merging_kernels().merge_floats_backward(mean.data(), DType::f32, kTokens, kD, slot.data(), nullptr, kKept,
                                          sizes.data(), grad_x.data(), true);
  results.add(sizes);
  results.add_rounded(mean);
  results.add_rounded(grad_x);
  return results;
}

}  // namespace

int main() {
  const Inputs inputs;
  // The first calls of all are made at once too: that is when the instruction set and the thresholds are chosen.
  std::vector<Results> first(4);
  std::vector<std::thread> threads;
  for (Results& result : first) threads.emplace_back([&] { result = run_all(inputs); });
  for (std::thread& thread : threads) thread.join();
  threads.clear();

  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 200; ++round) wrong += !run_all(inputs).agrees_with(first[0]);
    });
  std::thread switching([&] {
    while (!done) {
      for (const std::string& name : runnable_isas()) set_isa(name);
      for (const ThresholdInfo& threshold : list_tuning()) {
        set_tuning(threshold.name, threshold.least);
        std::this_thread::yield();
        set_tuning(threshold.name, std::nullopt);
      }
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads) thread.join();
  done = true;
  switching.join();
  for (const Results& result : first) wrong += !result.agrees_with(first[0]);
  std::printf("%d of 604 results are wrong\n", wrong.load());
  return wrong != 0;
}
