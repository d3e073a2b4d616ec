// Kernels of matmul.h, written with the compiler's vector extension, so that every instruction set compiles the same
// code to its own vectors.
#include "matmul/few.inl"
#include "matmul/linear.inl"
#include "matmul/lookup.inl"

namespace btr::BTR_ISA_NAMESPACE {

template <typename W>
void row_major_block(const MatmulArgs& args, const MatmulPlan& plan, int64_t token, int64_t tokens, int64_t first,
                     int64_t last, Scratch& scratch) {
  if (!plan.table_bits) return few_rows<W>(args, token, tokens, first, last, scratch);
  float* rows = scratch.get<float>(kGroup * kColumns<float>);
  float* tile = scratch.get<float>(kGroup * kColumns<float>);
  lookup_block<float>(args, plan, token, tokens, first, last, scratch, [&](int64_t column, int64_t channel) {
    return tile_of_rows<W>(args, column, channel, rows, tile);
  });
}

template <typename W>
void channel_major_block(const MatmulArgs& args, const MatmulPlan& plan, int64_t token, int64_t tokens, int64_t first,
                         int64_t last, Scratch& scratch) {
  using Sum = std::conditional_t<std::is_integral_v<W>, int16_t, float>;
  if (!plan.table_bits) return few_block<W>(args, token, tokens, first, last, scratch);
  Sum* tile = scratch.get<Sum>(kGroup * kColumns<Sum>);
  lookup_block<Sum>(args, plan, token, tokens, first, last, scratch, [&](int64_t column, int64_t channel) {
    return tile_of_channels<Sum, W>(args, column, channel, tile);
  });
}

inline void run_matmul(const MatmulArgs& args, const MatmulPlan& plan, int64_t begin, int64_t end) {
  for (int64_t piece = begin; piece < end; ++piece) {
    const MatmulPiece p = piece_of(plan, args.m, args.n, piece);
    Scratch scratch;
    const auto block = [&](auto* type) {
      using W = std::remove_pointer_t<decltype(type)>;
      if (args.channel_major)
        channel_major_block<W>(args, plan, p.token, p.tokens, p.first, p.last, scratch);
      else if constexpr (!std::is_integral_v<W>)
        row_major_block<W>(args, plan, p.token, p.tokens, p.first, p.last, scratch);
    };
    with_float_type(args.weight_type, block);
    if (args.weight_type == DType::i16) block(static_cast<int16_t*>(nullptr));
    if (args.weight_type == DType::i8) block(static_cast<int8_t*>(nullptr));
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
