// Host launchers of the CUDA kernels, called by csrc/torch. No CUDA header is needed to include this.
//
// Contract of every launcher: pointers are device memory of the current device, contiguous, of any alignment their
// element type allows; `dtype` is a btr::DType; the kernel is enqueued on `stream` of the current device. Nothing
// synchronises or allocates, so a launch can be captured in a CUDA graph. Sizes of zero launch nothing. Returns a
// cudaError_t: cudaErrorInvalidValue for a dtype the operator does not take, else cudaGetLastError() after the launch.
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;  // as in cuda_runtime.h; repeating it is legal C++

// int64 (`wide`) or int32 values in device memory; null data: none were given.
struct BtrIntegers {
  const void* data;
  int32_t wide;
};

// The arguments of unpack_matmul and unpack_geglu:
// out[r, c] = token_scale[r] * factors[c] * sum over k of (scale[k] * (bit k of row r ? 1 : -1)) * weight[c, k] + bias[c].
// Null vectors count as 1, 1, 1 and no bias. Gated, with the first n columns y of that and the other n columns z,
// out = gelu(y) * z, gelu in its approximation by tanh.
// bits (m, ceil(d / 8)), weight (columns, d), factors and bias (columns), scale (d), token_scale (m) -> out (m, n) f32, f16
// or bf16; columns = gated ? 2 n : n. weight f32, f16 or bf16; without a scale also i8, and e4m3 on compute capability 9;
// any other is cudaErrorInvalidValue or cudaErrorNotSupported.
// Sums of f32, f16 and bf16 are float32, exact products of them; those of i8 are exact.
struct BtrProjection {
  const uint8_t* bits;
  const void* weight;
  const float *scale, *factors, *bias, *token_scale;
  void* out;
  int64_t m, n, d;
  int32_t weight_dtype, out_dtype, gated;
  // Which kernel: 0 the one that should be fastest; 1 large tiles, 2 middle ones (compute capability 9 only), 3 small ones;
  // 4 the one for few tokens, at most 64.
  int32_t tile;
};

extern "C" {

// Bit c of a row is 1 iff x[c] >= 0 (so -0.0 gives 1, NaN gives 0; a boolean is its own bit), least significant bit first.
// x (rows, d) f32, f16, bf16 or boolean, d >= 1 -> out (rows, ceil(d / 8)), pad bits zero.
// Fast path (16-byte loads): d % 8 == 0, x 16-byte aligned, out 4-byte aligned.
int btr_cuda_pack_bits(const void* x, int dtype, int64_t rows, int64_t d, uint8_t* out, cudaStream_t stream);

// out[r, c] = token_scale[r] * (scale[c] * (bit c of row r ? 1 : -1)) + bias[c], each operation rounded to float32 and
// the result once more to f16 or bf16. Null vectors count as 1, 1 and no bias. Pad bits of `bits` are ignored.
// bits (rows, ceil(d / 8)), scale (d), bias (d), token_scale (rows) -> out (rows, d) f32, f16 or bf16.
// Fast path (16-byte stores): d % 8 == 0, out, scale and bias 16-byte aligned.
int btr_cuda_unpack_bits(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, const float* bias,
                         const float* token_scale, void* out, int dtype, cudaStream_t stream);

// copy = bits and out[r, c] = (bit c of row r ? 1 : -1) * scale[c], rounded to the dtype: bits (rows, ceil(d / 8)), which may
// lie in pinned host memory, scale (d) -> copy (rows, ceil(d / 8)), out (rows, d) f32, f16 or bf16.
// Fast path: d % 128 == 0 and all 16-byte aligned.
int btr_cuda_restore_bits(const uint8_t* bits, int64_t rows, int64_t d, const float* scale, uint8_t* copy, void* out,
                          int dtype, cudaStream_t stream);

// Signs of x, or with `layer` of x - mean(x), as above, and unless null magnitude (rows): sqrt(mean(x^2) + eps), with
// `layer` sqrt(var(x) + eps). x (rows, d) f32, f16 or bf16, d >= 1 -> bits (rows, ceil(d / 8)), pad bits zero.
// Fast path: x 16-byte aligned, d a multiple of what 16 bytes hold.
int btr_cuda_binarize(const void* x, int dtype, int64_t rows, int64_t d, int layer, double eps, uint8_t* bits,
                      float* magnitude, cudaStream_t stream);

// Masked bits (btr_kernels.expand_bits): codes (tokens, c), ids (tokens), mask and fill (table_rows, w) -> out (tokens, w).
// An id without a row takes the nearest. Fast path: w % 4 == 0; mask, fill and out 4-byte aligned.
int btr_cuda_expand_bits(const uint8_t* codes, BtrIntegers ids, const uint8_t* mask, const uint8_t* fill, int64_t tokens,
                         int64_t table_rows, int64_t c, int64_t w, uint8_t* out, cudaStream_t stream);

// Differing bits of all pairs of rows: a (batch, m, w), b (batch, n, w) -> out (batch, m, n), w >= 1 below 2^28.
// Fast path: w % 16 == 0 and a, b 16-byte aligned (loads), n % 4 == 0 and out 16-byte aligned (stores).
int btr_cuda_hamming_distance(const uint8_t* a, const uint8_t* b, int64_t batch, int64_t m, int64_t n, int64_t w,
                              int32_t* out, cudaStream_t stream);

// The k rows of b (n, w) nearest to each of a (m, w), 1 <= k <= n < 2^31, by distance and then by index -> distances (m, k),
// indices (m, k). `scratch` holds the distances of `scratch_rows` >= 1 rows of a: (scratch_rows, n).
int btr_cuda_hamming_topk(const uint8_t* a, const uint8_t* b, int64_t m, int64_t n, int64_t w, int64_t k, int32_t* scratch,
                          int64_t scratch_rows, int32_t* distances, int64_t* indices, cudaStream_t stream);

// Bipartite matching (btr_kernels.match_tokens): bits (tokens, w) of `batch` passages, at offsets (batch + 1) or of equal
// length, then of lengths (batch) or all of it; keep (batch) -> slot (tokens), new_lengths (batch). Values are clamped:
// whatever they are, nothing else is touched. `scratch` has btr_cuda_match_tokens_scratch bytes, aligned to 16.
int64_t btr_cuda_match_tokens_scratch(int64_t tokens, int64_t w, int64_t batch);
int btr_cuda_match_tokens(const uint8_t* bits, int64_t tokens, int64_t w, int64_t batch, BtrIntegers offsets,
                          BtrIntegers lengths, BtrIntegers keep, int32_t* slot, int32_t* new_lengths, void* scratch,
                          cudaStream_t stream);

// Majority votes (btr_kernels.merge_bits): bits (tokens, w) of `batch` passages of equal length with slot and sizes (tokens;
// null sizes count as 1) -> out (batch, rows, w), new_sizes (batch, rows). Packed passages have offsets `from` (batch + 1)
// of tokens and `to` (batch + 1) of rows, and out (rows, w), new_sizes (rows). Slots outside of a passage's rows are left
// out. Fast path: w % 16 == 0, bits and out 16-byte aligned.
int btr_cuda_merge_bits(const uint8_t* bits, int64_t tokens, int64_t w, int64_t batch, int64_t rows, const int32_t* slot,
                        const int32_t* sizes, BtrIntegers from, BtrIntegers to, uint8_t* out, int32_t* new_sizes,
                        cudaStream_t stream);

// Weighted means (btr_kernels.merge_tokens) of x (tokens, d) f32, f16 or bf16, the rest as above.
// Fast path: x and out 16-byte aligned, d a multiple of what 16 bytes hold.
int btr_cuda_merge_tokens(const void* x, int dtype, int64_t tokens, int64_t d, int64_t batch, int64_t rows,
                          const int32_t* slot, const int32_t* sizes, BtrIntegers from, BtrIntegers to, void* out,
                          int32_t* new_sizes, cudaStream_t stream);

// Projections, see BtrProjection. Bytes of scratch memory that the call needs, at a multiple of 16: for what is copied
// because its rows do not start at multiples of 16 bytes (8 for bits), and for the bfloat16 terms of a weight that is
// float32 or has a scale.
int64_t btr_cuda_unpack_matmul_scratch(const BtrProjection* arguments);

// Fast path: d % 64 == 0, bits 8-byte aligned, weight 16-byte aligned; vectors are stored if n % 8 == 0 and out is 16-byte
// aligned.
int btr_cuda_unpack_matmul(const BtrProjection* arguments, void* scratch, cudaStream_t stream);

}  // extern "C"
