// Every CPU kernel on every instruction set against plain loops, on buffers of exactly the size it may touch. Built
// with the address and undefined-behaviour sanitizers (`make sanitize`), which find what a wrong result does not show.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "bits/bits.h"
#include "checking.h"
#include "core/isa.h"
#include "core/tuning.h"
#include "hamming/hamming.h"
#include "merging/merging.h"

using namespace btr;

namespace {

void check_bits(int64_t rows, int64_t d, const std::string& at) {
  const int64_t w = bytes_for(d);
  auto x = random_floats(rows * d), scale = random_floats(d), bias = random_floats(d), token_scale = random_floats(rows);
  auto bits = exact<uint8_t>(rows * w);
  bits_kernels().pack(x.get(), DType::f32, rows, d, bits.get());
  bool ok = true;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < 8 * w; ++c) ok &= bit(bits.get() + r * w, c) == (c < d && x[size_t(r * d + c)] >= 0);
  expect(ok, "pack f32 " + at);

  // Every 16-bit pattern class as storage; the sign rule is the same for both 16-bit floats.
  for (DType type : {DType::f16, DType::bf16, DType::boolean}) {
    auto raw = random_bytes(rows * d * size_of(type));
    if (type == DType::boolean)
      for (int64_t i = 0; i < rows * d; ++i) raw[size_t(i)] &= 1;
    bits_kernels().pack(raw.get(), type, rows, d, bits.get());
    ok = true;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < d; ++c) {
        const int64_t i = r * d + c;
        bool positive = raw[size_t(i)] != 0;
        if (type != DType::boolean) {
          const unsigned u = unsigned(raw[size_t(2 * i)] | raw[size_t(2 * i + 1)] << 8);
          positive = u <= (type == DType::f16 ? 0x7c00u : 0x7f80u) || u == 0x8000u;
        }
        ok &= bit(bits.get() + r * w, c) == positive;
      }
    expect(ok, "pack type " + std::to_string(int(type)) + " " + at);
  }

  auto y = exact<float>(rows * d);
  for (bool streaming : {false, true}) {
    bits_kernels().unpack(bits.get(), rows, d, scale.get(), bias.get(), token_scale.get(), y.get(), DType::f32, streaming);
    ok = true;
    for (int64_t i = 0; i < rows * d; ++i) {
      const double sign = bit(bits.get() + i / d * w, i % d) ? 1 : -1;
      ok &= close(y[size_t(i)], sign * scale[size_t(i % d)] * token_scale[size_t(i / d)] + bias[size_t(i % d)], 1e-5);
    }
    expect(ok, "unpack " + at);
  }
  for (DType type : {DType::f16, DType::bf16}) {
    auto half = exact<uint16_t>(rows * d);
    bits_kernels().unpack(bits.get(), rows, d, nullptr, nullptr, nullptr, half.get(), type, false);
    const uint16_t one = type == DType::f16 ? 0x3c00 : 0x3f80;
    ok = true;
    for (int64_t i = 0; i < rows * d; ++i)
      ok &= half[size_t(i)] == (bit(bits.get() + i / d * w, i % d) ? one : uint16_t(one | 0x8000));
    expect(ok, "unpack type " + std::to_string(int(type)) + " " + at);
  }

  auto magnitude = exact<float>(rows);
  bits_kernels().binarize(x.get(), DType::f32, rows, d, true, 1e-6, bits.get(), magnitude.get());
  bits_kernels().sign_scale(x.get(), DType::f32, rows, d, true, scale.get(), y.get(), rows % 2 == 0);
  ok = true;
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, squares = 0;
    for (int64_t c = 0; c < d; ++c) mean += x[size_t(r * d + c)] / double(d);
    for (int64_t c = 0; c < d; ++c) squares += std::pow(x[size_t(r * d + c)] - mean, 2) / double(d);
    ok &= close(magnitude[size_t(r)], std::sqrt(squares + 1e-6), 1e-4);
    for (int64_t c = 0; c < d; ++c) {
      const double centred = x[size_t(r * d + c)] - mean;
      if (std::fabs(centred) < 1e-5) continue;
      ok &= bit(bits.get() + r * w, c) == (centred >= 0);
      ok &= y[size_t(r * d + c)] == (centred >= 0 ? scale[size_t(c)] : -scale[size_t(c)]);
    }
  }
  expect(ok, "binarize, sign_scale " + at);

  auto grad = random_floats(rows * d), grad_x = exact<float>(rows * d), grad_scale = exact<float>(d);
  for (Norm norm : {Norm::none, Norm::rms, Norm::layer})
    for (SignGradient gradient : {SignGradient::straight_through, SignGradient::tanh}) {
      std::memset(grad_scale.get(), 0, sizeof(float) * size_t(d));
      bits_kernels().sign_scale_backward(grad.get(), x.get(), DType::f32, rows, d, scale.get(),
                                         {norm, 1e-6, gradient, 2.0}, grad_x.get(), grad_scale.get());
      ok = true;
      for (int64_t i = 0; i < rows * d; ++i) ok &= std::isfinite(grad_x[size_t(i)]);
      if (norm == Norm::none)
        for (int64_t i = 0; i < rows * d; ++i) {
          const double n = x[size_t(i)], t = std::tanh(2 * n);
          const double slope = gradient == SignGradient::tanh ? 2 * (1 - t * t) : std::fabs(n) <= 2;
          ok &= close(grad_x[size_t(i)], grad[size_t(i)] * double(scale[size_t(i % d)]) * slope, 1e-5);
        }
      expect(ok, "sign_scale_backward " + at);
    }
}

// k channels in each mask, or, where `k` is -1, any number of them: then codes are too short and ids out of range too.
void check_masked(int64_t rows, int64_t w, int64_t k, const std::string& at) {
  const int64_t count = 3, kept = std::max<int64_t>(k < 0 ? 3 * w : k, 1), c = bytes_for(kept);
  auto mask = random_bytes(count * w), fill = random_bytes(count * w), bits = random_bytes(rows * w);
  auto ids = exact<int64_t>(rows);
  for (int64_t r = 0; r < rows; ++r) ids[size_t(r)] = k < 0 ? int64_t(random_bits()) >> (r % 64) : int64_t(random_bits() % 3);
  if (k >= 0) {
    std::vector<int64_t> channels(static_cast<size_t>(8 * w));
    for (int64_t i = 0; i < 8 * w; ++i) channels[size_t(i)] = i;
    std::fill_n(mask.get(), count * w, uint8_t(0));
    for (int64_t i = 0; i < count; ++i) {
      std::shuffle(channels.begin(), channels.end(), random_bits);
      for (int64_t j = 0; j < k; ++j) mask[size_t(i * w + channels[size_t(j)] / 8)] |= uint8_t(1 << channels[size_t(j)] % 8);
    }
  }
  const Masks masks{mask.get(), count, w};
  expect(bits_kernels().masks_hold(masks, ids.get(), rows, kept) == (k >= 0 || rows == 0), "masks_hold " + at);

  auto codes = exact<uint8_t>(rows * c), back = exact<uint8_t>(rows * w);
  bits_kernels().compress(bits.get(), ids.get(), rows, masks, kept, codes.get());
  bits_kernels().expand(codes.get(), c, ids.get(), rows, masks, fill.get(), back.get());
  bool ok = true;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = std::clamp<int64_t>(ids[size_t(r)], 0, count - 1) * w;
    int64_t place = 0;
    for (int64_t i = 0; i < 8 * w; ++i) {
      const bool in_mask = bit(mask.get() + row, i), value = bit(bits.get() + r * w, i);
      if (in_mask && place < kept) ok &= bit(codes.get() + r * c, place) == value;
      const bool restored = in_mask ? place < kept && value : bit(fill.get() + row, i);
      ok &= bit(back.get() + r * w, i) == restored;
      place += in_mask;
    }
    for (place = std::min(place, kept); place < 8 * c; ++place) ok &= !bit(codes.get() + r * c, place);
  }
  expect(ok, "compress, expand " + at);
}

// A bias of the last key of -infinity, and a token all of whose keys have it.
void check_attention(int64_t tokens, int64_t count, int64_t heads, int64_t d, const std::string& at) {
  const int64_t batch = 2, inner = heads * d;
  auto query = random_floats(batch * tokens * inner), out = exact<float>(batch * tokens * inner);
  auto keys = random_floats(batch * count * inner), values = random_floats(batch * count * inner);
  auto bias = random_floats(batch * tokens * count);
  for (int64_t i = 0; i < batch * tokens * count; ++i)
    if (i < count || i % count == count - 1) bias[size_t(i)] = -INFINITY;
  AttentionArgs args{};
  args.query = query.get(), args.keys = keys.get(), args.values = values.get(), args.out = out.get();
  args.bias = bias.get(), args.bias_of_batch = tokens * count, args.bias_of_token = count;
  args.batch = batch, args.tokens = tokens, args.count = count, args.heads = heads, args.head_size = d;
  const int64_t parts = std::min<int64_t>(count, 2);
  auto partial = exact<float>(batch * tokens * parts * attention_room(args));
  attention_kernels().run(args, parts, 0, batch * tokens * parts, partial.get());
  attention_kernels().combine(args, parts, 0, batch * tokens, partial.get());
  bool ok = true;
  for (int64_t row = 0; row < batch * tokens; ++row)
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<double> mixed(static_cast<size_t>(d));
      double sum = 0;
      for (int64_t s = 0; s < count; ++s) {
        const int64_t at_key = (row / tokens * count + s) * inner + h * d;
        double logit = bias[size_t(row * count + s)];
        for (int64_t c = 0; c < d; ++c) logit += double(query[size_t(row * inner + h * d + c)]) * keys[size_t(at_key + c)];
        const double weight = std::exp(logit);
        sum += weight;
        for (int64_t c = 0; c < d; ++c) mixed[size_t(c)] += weight * values[size_t(at_key + c)];
      }
      for (int64_t c = 0; c < d; ++c)
        ok &= close(out[size_t(row * inner + h * d + c)], sum > 0 ? mixed[size_t(c)] / sum : 0, 1e-4);
    }
  expect(ok, "attention " + at);
}

int distance(const uint8_t* a, const uint8_t* b, int64_t w) {
  int sum = 0;
  for (int64_t c = 0; c < 8 * w; ++c) sum += bit(a, c) != bit(b, c);
  return sum;
}

void check_hamming(int64_t m, int64_t n, int64_t w, const std::string& at) {
  auto a = random_bytes(m * w), b = random_bytes(n * w);
  auto out = exact<int32_t>(m * n);
  bool ok = true;
  for (bool streaming : {false, true}) {
    ok = true;
    hamming_kernels().distance(a.get(), m, b.get(), n, w, out.get(), streaming);
    for (int64_t i = 0; i < m * n; ++i) ok &= out[size_t(i)] == distance(a.get() + i / n * w, b.get() + i % n * w, w);
    expect(ok, (streaming ? "streamed distance " : "distance ") + at);
  }
  for (int64_t k : {int64_t(1), (n + 1) / 2, n}) {
    auto nearest = exact<int32_t>(m * k);
    auto index = exact<int64_t>(m * k);
    hamming_kernels().topk(a.get(), m, b.get(), n, w, k, nearest.get(), index.get());
    ok = true;
    for (int64_t i = 0; i < m * k; ++i) {
      ok &= nearest[size_t(i)] == out[size_t(i / k * n + index[size_t(i)])];
      if (i % k == 0) continue;
      const bool ordered = nearest[size_t(i)] > nearest[size_t(i - 1)] ||
                           (nearest[size_t(i)] == nearest[size_t(i - 1)] && index[size_t(i)] > index[size_t(i - 1)]);
      ok &= ordered;
    }
    expect(ok, "topk " + at);
  }
}

void check_merging(int64_t length, int64_t w, int64_t keep, const std::string& at) {
  auto bits = random_bytes(length * w);
  auto slot = exact<int32_t>(length);
  const int64_t rows = merging_kernels().match(bits.get(), length, w, keep, slot.get());
  bool ok = rows == std::min(length, keep);
  std::vector<int> used(size_t(rows), 0);
  for (int64_t t = 0; t < length; ++t) {
    ok &= slot[size_t(t)] >= 0 && slot[size_t(t)] < rows;
    ++used[size_t(slot[size_t(t)])];
  }
  for (int count : used) ok &= count > 0;
  expect(ok, "match " + at);

  auto sizes = exact<int32_t>(length);
  for (int64_t t = 0; t < length; ++t) sizes[size_t(t)] = int32_t(random_bits() % 300);
  auto merged = exact<uint8_t>(rows * w);
  auto new_sizes = exact<int32_t>(rows);
  for (const int32_t* given : {static_cast<const int32_t*>(nullptr), static_cast<const int32_t*>(sizes.get())}) {
    merging_kernels().merge_bits(bits.get(), length, w, slot.get(), given, rows, merged.get(), new_sizes.get());
    ok = true;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < 8 * w; ++c) {
        int64_t votes = 0, total = 0, first = -1;
        for (int64_t t = 0; t < length; ++t) {
          if (slot[size_t(t)] != r) continue;
          if (first < 0) first = t;
          const int64_t size = given ? given[t] : 1;
          total += size;
          votes += bit(bits.get() + t * w, c) ? size : -size;
        }
        const bool one = total > 0 && (votes > 0 || (votes == 0 && bit(bits.get() + first * w, c)));
        ok &= bit(merged.get() + r * w, c) == one && new_sizes[size_t(r)] == total;
      }
    expect(ok, "merge_bits " + at);
  }

  const int64_t d = 5 * w;
  auto x = random_floats(length * d), mean = exact<float>(rows * d), back = exact<float>(length * d);
  for (bool streaming : {false, true}) {
    merging_kernels().merge_floats(x.get(), DType::f32, length, d, slot.get(), sizes.get(), rows, mean.get(),
                                   new_sizes.get(), streaming);
    merging_kernels().merge_floats_backward(mean.get(), DType::f32, length, d, slot.get(), sizes.get(), rows,
                                            new_sizes.get(), back.get(), streaming);
    ok = true;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < d; ++c) {
        double sum = 0, total = 0;
        for (int64_t t = 0; t < length; ++t)
          if (slot[size_t(t)] == r) sum += double(x[size_t(t * d + c)]) * sizes[size_t(t)], total += sizes[size_t(t)];
        ok &= close(mean[size_t(r * d + c)], total > 0 ? sum / total : 0, 1e-4);
        for (int64_t t = 0; t < length; ++t)
          if (slot[size_t(t)] == r)
            ok &= close(back[size_t(t * d + c)], mean[size_t(r * d + c)] * (total > 0 ? sizes[size_t(t)] / total : 0), 1e-5);
      }
    expect(ok, "merge_floats " + at);
  }
  // 16-bit floats: ones have a mean of one.
  for (DType type : {DType::f16, DType::bf16}) {
    const uint16_t one = type == DType::f16 ? 0x3c00 : 0x3f80;
    auto ones = exact<uint16_t>(length * d), means = exact<uint16_t>(rows * d), grads = exact<uint16_t>(length * d);
    for (int64_t i = 0; i < length * d; ++i) ones[size_t(i)] = one;
    merging_kernels().merge_floats(ones.get(), type, length, d, slot.get(), nullptr, rows, means.get(), new_sizes.get(),
                                   true);
    std::fill_n(new_sizes.get(), rows, 1);
    merging_kernels().merge_floats_backward(means.get(), type, length, d, slot.get(), nullptr, rows, new_sizes.get(),
                                            grads.get(), true);
    ok = true;
    for (int64_t i = 0; i < rows * d; ++i) ok &= means[size_t(i)] == one;
    for (int64_t i = 0; i < length * d; ++i) ok &= grads[size_t(i)] == one;
    expect(ok, "merge_floats 16 bits " + at);
  }
}

}  // namespace

int main() {
  for (const std::string& name : runnable_isas()) {
    set_isa(name);
    for (int64_t d : {1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 128, 129})
      for (int64_t rows : {0, 1, 3}) check_bits(rows, d, name + " rows " + std::to_string(rows) + " d " + std::to_string(d));
    for (int64_t w : {1, 7, 8, 9, 24, 96, 100, 128})
      for (int64_t rows : {0, 1, 5, 200})
        for (int64_t k : {int64_t(-1), int64_t(1), 2 * w, 7 * w, 8 * w})
          check_masked(rows, w, k, name + " rows " + std::to_string(rows) + " w " + std::to_string(w) + " k " + std::to_string(k));
    check_projections(name);
    for (int64_t d : {1, 8, 16, 33})
      for (int64_t count : {1, 2, 16, 35})
        for (int64_t heads : {1, 3})
          for (int64_t tokens : {1, 2})
            check_attention(tokens, count, heads, d, name + " d " + std::to_string(d) + " keys " + std::to_string(count));
    for (int64_t w : {1, 7, 8, 9, 96})
      for (int64_t n : {1, 3, 4, 5, 300}) check_hamming(3, n, w, name + " n " + std::to_string(n) + " w " + std::to_string(w));
    // Every number of registers of a block of b, a token of several chunks or registers, and those at the widest that
    // are taken in blocks.
    for (int64_t w : {33, 56, 63, 64, 65, 97, 128, 150, 300})
      for (int64_t n : {20, 33, 64, 70, 100, 128, 190, 257}) check_hamming(5, n, w, name + " n " + std::to_string(n) + " w " + std::to_string(w));
    for (int64_t w : {4096, 4097, 8191, 8192}) check_hamming(4, 13, w, name + " w " + std::to_string(w));
    for (int64_t w : {1, 3, 13, 32, 40})
      for (int64_t length : {0, 1, 2, 3, 8, 17, 40})
        for (int64_t keep : {1, 2, 5, 20, 100})
          check_merging(length, w, keep, name + " length " + std::to_string(length) + " keep " + std::to_string(keep));
    std::printf("%s: %d passed, %d failed\n", name.c_str(), passed, failed);
  }
  return failed != 0;
}
