// The order in which kernels walk over rows: several far apart at a time, a piece of each in turn.
//
// Hardware prefetchers follow a sequence of addresses within a page of 4 KB and start anew on the next one. A kernel
// that reads or writes one sequence therefore waits at every page; with some sequences in flight the others go on
// meanwhile. On Zen 3 four sequences read 1.7 times as fast as one from main memory and from the last-level cache.
//
// Prefetchers also tell sequences apart by the instructions that load them. The loop over the streams is therefore
// unrolled, so that each has instructions of its own: on Zen 5 four streams that share theirs are read at a third of
// the bandwidth, unless they happen to lie a multiple of 2 MB apart.

#pragma once

#include <cstdint>

#define BTR_INLINE inline __attribute__((always_inline))

namespace btr::BTR_ISA_NAMESPACE {

// Bytes of a row handled at a time. Long enough for streaming stores, which fill the few buffers between core and
// memory line by line (with pieces of 64 bytes they evict each other half filled).
constexpr int64_t kPieceBytes = 512;

// A number of channels that the compiler knows, so that kernels can unroll their loops over it.
template <int64_t kCount>
struct Channels {
  constexpr operator int64_t() const { return kCount; }
};

// Calls piece(stream, row, begin, count) for all channels of all rows, where `count` is Channels for a whole piece, and
// row_done(stream, row) after the last of each row. No two rows with the same `stream`, which is below kStreams, are
// open at once. Pieces must be inlined (BTR_PIECE): each call in the source stands for kStreams of them.
template <int kStreams, typename T, typename Piece, typename RowDone>
BTR_INLINE void for_each_piece(int64_t rows, int64_t d, Piece&& piece, RowDone&& row_done) {
  constexpr int64_t kPiece = kPieceBytes / int64_t(sizeof(T));
  const int64_t part = rows / kStreams, whole = d / kPiece * kPiece;
  for (int64_t r = 0; r < part; ++r) {
    for (int64_t c = 0; c < whole; c += kPiece) {
#pragma GCC unroll 8
      for (int s = 0; s < kStreams; ++s) piece(s, s * part + r, c, Channels<kPiece>());
    }
    for (int s = 0; s < kStreams; ++s) {
      if (whole < d) piece(s, s * part + r, whole, d - whole);
      row_done(s, s * part + r);
    }
  }
  for (int64_t r = kStreams * part; r < rows; ++r) {
    for (int64_t c = 0; c < whole; c += kPiece) piece(0, r, c, Channels<kPiece>());
    if (whole < d) piece(0, r, whole, d - whole);
    row_done(0, r);
  }
}

template <int kStreams, typename T, typename Piece>
BTR_INLINE void for_each_piece(int64_t rows, int64_t d, Piece&& piece) {
  for_each_piece<kStreams, T>(rows, d, piece, [](int, int64_t) {});
}

}  // namespace btr::BTR_ISA_NAMESPACE
