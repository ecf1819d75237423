// The element type T of a kernel, chosen by SDPA_DTYPE, and its ways to and from float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/arguments.h"

// A loop whose index picks registers, so it must be unrolled: an array indexed at run time lives in local memory.
#define SDPA_FOR(i, n) _Pragma("unroll") for (int i = 0; i < (n); ++i)

namespace sdpa {

constexpr int kDType = SDPA_DTYPE;

template <int dtype>
struct ElementOf {
  using type = float;
};
template <>
struct ElementOf<int(DType::F16)> {
  using type = __half;
};
template <>
struct ElementOf<int(DType::BF16)> {
  using type = __nv_bfloat16;
};
using T = ElementOf<kDType>::type;
using Out = ElementOf<SDPA_OUT_F32 ? int(DType::F32) : kDType>::type;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename To>
__device__ inline To from_float(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two elements of 16 bits in a word: `low` comes first in memory.
template <typename E>
__device__ inline unsigned pack(float low, float high);
template <>
__device__ inline unsigned pack<__half>(float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
__device__ inline unsigned pack<__nv_bfloat16>(float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// 16 bytes of a row of n elements at column `col`, through any stride; zero beyond its end.
template <typename E>
__device__ inline uint4 gather_16_bytes(const E* row, int64_t stride, int col, int n) {
  constexpr int W = 16 / sizeof(E);
  union {
    E x[W];
    uint4 bits;
  } chunk = {.bits = {0, 0, 0, 0}};
  SDPA_FOR (i, W)
    if (col + i < n) chunk.x[i] = row[int64_t(col + i) * stride];
  return chunk.bits;
}

}  // namespace sdpa
