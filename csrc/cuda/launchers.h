// Host launchers of the CUDA kernels, called by csrc/torch. No CUDA header is needed to include this.
//
// Contract of every launcher: pointers are device memory of the current device, contiguous, of any alignment their
// element type allows; `dtype` is a btr::DType; the kernel is enqueued on `stream` of the current device. Nothing
// synchronises or allocates, so a launch can be captured in a CUDA graph. Sizes of zero launch nothing. Returns a
// cudaError_t: cudaErrorInvalidValue for a dtype the operator does not take, else cudaGetLastError() after the launch.
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;  // as in cuda_runtime.h; repeating it is legal C++

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

}  // extern "C"
