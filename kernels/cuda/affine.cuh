// Pairs of elements of 16 bits, and of the scales and biases of MLX's affine quantization.
#pragma once

#include "kernels/cuda/convert.cuh"

namespace sdpa {

constexpr bool kHalf = kDType == int(DType::F16);

// a * b + c of two elements
__device__ inline unsigned multiply_add_pair(unsigned a, unsigned b, unsigned c) {
  unsigned x;
  if constexpr (kHalf)
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(x) : "r"(a), "r"(b), "r"(c));
  else
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x) : "r"(a), "r"(b), "r"(c));
  return x;
}

__device__ inline unsigned select_or(unsigned x, unsigned mask, unsigned bits) {
  unsigned y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
  return y;
}

// Scale and bias of two elements.
struct Affine {
  unsigned scale, bias;
};

}  // namespace sdpa
