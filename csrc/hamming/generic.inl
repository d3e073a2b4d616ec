// Kernels of hamming.h, compiled once for each instruction set.

#include "core/scratch.h"
#include "hamming/hamming.h"
#include "hamming/pair.inl"

namespace btr::BTR_ISA_NAMESPACE {

// Rows of b that stay in L1 while all rows of a pass over them.
inline int64_t rows_in_l1(int64_t w) {
  constexpr int64_t kBytes = 16 * 1024;
  return w < kBytes / 4 ? kBytes / w / 4 * 4 : 4;
}

inline void distance_matrix(const uint8_t* a, int64_t m, const uint8_t* b, int64_t n, int64_t w, int32_t* out) {
  const int64_t block = rows_in_l1(w);
  for (int64_t j = 0; j < n; j += block) {
    const int64_t count = n - j < block ? n - j : block;
    for (int64_t i = 0; i < m; ++i) distances_of(a + i * w, b + j * w, count, w, out + i * n + j);
  }
}

struct Candidate {
  int32_t distance;
  int64_t index;
  bool before(const Candidate& other) const {
    return distance != other.distance ? distance < other.distance : index < other.index;
  }
};

// Moves the candidate at `at` down a heap whose worst candidate is on top.
inline void sift_down(Candidate* heap, int64_t size, int64_t at) {
  for (int64_t child = 2 * at + 1; child < size; child = 2 * at + 1) {
    if (child + 1 < size && heap[child].before(heap[child + 1])) ++child;
    if (!heap[at].before(heap[child])) return;
    const Candidate moved = heap[at];
    heap[at] = heap[child];
    heap[child] = moved;
    at = child;
  }
}

inline void topk(const uint8_t* a, int64_t m, const uint8_t* b, int64_t n, int64_t w, int64_t k, int32_t* distances,
                 int64_t* indices) {
  Scratch scratch;
  const int64_t block = rows_in_l1(w);
  Candidate* heap = scratch.get<Candidate>(k);
  int32_t* buffer = scratch.get<int32_t>(block);
  for (int64_t i = 0; i < m; ++i) {
    int64_t size = 0;
    for (int64_t start = 0; start < n; start += block) {
      const int64_t count = n - start < block ? n - start : block;
      distances_of(a + i * w, b + start * w, count, w, buffer);
      for (int64_t j = 0; j < count; ++j) {
        if (size < k) {
          heap[size++] = {buffer[j], start + j};
          if (size == k)
            for (int64_t at = k / 2 - 1; at >= 0; --at) sift_down(heap, k, at);
        } else if (buffer[j] < heap[0].distance) {  // an equal distance loses, as its index is higher
          heap[0] = {buffer[j], start + j};
          sift_down(heap, k, 0);
        }
      }
    }
    for (int64_t left = k; left > 0; --left) {
      distances[i * k + left - 1] = heap[0].distance;
      indices[i * k + left - 1] = heap[0].index;
      heap[0] = heap[left - 1];
      sift_down(heap, left - 1, 0);
    }
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
