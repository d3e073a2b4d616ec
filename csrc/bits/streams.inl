// The order in which kernels walk over rows: several far apart at a time, a piece of each in turn.
//
// Hardware prefetchers follow a sequence of addresses within a page of 4 KB and start anew on the next one. A kernel
// that reads or writes one sequence therefore waits at every page; with some sequences in flight the others go on
// meanwhile. On Zen 3 four sequences read 1.7 times as fast as one from main memory and from the last-level cache.

#include <cstdint>

namespace btr::BTR_ISA_NAMESPACE {

// Bytes of a row handled at a time. Long enough for streaming stores, which fill the few buffers between core and
// memory line by line (with pieces of 64 bytes they evict each other half filled).
constexpr int64_t kPieceBytes = 512;

// Calls piece(stream, row, begin, count) for all channels of all rows, and row_done(stream, row) after the last of
// each row. No two rows with the same `stream`, which is below kStreams, are open at once.
template <int kStreams, typename T, typename Piece, typename RowDone>
inline void for_each_piece(int64_t rows, int64_t d, Piece&& piece, RowDone&& row_done) {
  constexpr int64_t kPiece = kPieceBytes / int64_t(sizeof(T));
  const int64_t part = rows / kStreams;
  for (int64_t r = 0; r < part; ++r) {
    for (int64_t c = 0; c < d; c += kPiece) {
      const int64_t count = d - c < kPiece ? d - c : kPiece;
      for (int s = 0; s < kStreams; ++s) piece(s, s * part + r, c, count);
    }
    for (int s = 0; s < kStreams; ++s) row_done(s, s * part + r);
  }
  for (int64_t r = kStreams * part; r < rows; ++r) {
    for (int64_t c = 0; c < d; c += kPiece) piece(0, r, c, d - c < kPiece ? d - c : kPiece);
    row_done(0, r);
  }
}

template <int kStreams, typename T, typename Piece>
inline void for_each_piece(int64_t rows, int64_t d, Piece&& piece) {
  for_each_piece<kStreams, T>(rows, d, piece, [](int, int64_t) {});
}

}  // namespace btr::BTR_ISA_NAMESPACE
