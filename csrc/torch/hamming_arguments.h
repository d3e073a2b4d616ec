// The arguments of the operators of Hamming distances, as the CPU (hamming.cpp) and CUDA (cuda_passages.cpp) read them.
#pragma once

#include "torch/arguments.h"

namespace btr {

struct DistanceArguments {
  int64_t batch = 1, m, n, w;
  const uint8_t *a, *b;
  int32_t* distances;

  DistanceArguments(const Tensor& first, const Tensor& second, const Tensor& out) {
    STD_TORCH_CHECK(out.dim() >= 2, "out: expected (..., m, n)");
    m = out.size(out.dim() - 2), n = last_size(out), w = token_size("a", first);
    for (int64_t i = 0; i + 2 < out.dim(); ++i) batch *= out.size(i);
    a = read<uint8_t>("a", first, ScalarType::Byte, batch * m * w);
    b = read<uint8_t>("b", second, ScalarType::Byte, batch * n * w);
    distances = write<int32_t>("out", out, ScalarType::Int, batch * m * n);
  }
};

struct NearestArguments {
  int64_t m, n, w, k;
  const uint8_t *a, *b;
  int32_t* distances;
  int64_t* indices;

  NearestArguments(const Tensor& first, const Tensor& second, const Tensor& found, const Tensor& index)
      : m(rows_of(first)), n(rows_of(second)), w(token_size("a", first)), k(last_size(found)) {
    STD_TORCH_CHECK(k >= 1 && k <= n, "k: expected 1 to ", n, ", got ", k);
    a = read<uint8_t>("a", first, ScalarType::Byte, m * w);
    b = read<uint8_t>("b", second, ScalarType::Byte, n * w);
    distances = write<int32_t>("distances", found, ScalarType::Int, m * k);
    indices = write<int64_t>("indices", index, ScalarType::Long, m * k);
  }
};

}  // namespace btr
