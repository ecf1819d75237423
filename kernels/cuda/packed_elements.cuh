// Packed elements as pairs of T. A group's scale and bias stay out of the products with K:
//
//   sum_d q_d (scale n_d + bias) = scale sum_d q_d (n_d + kOffset) + (bias - kOffset scale) sum_d q_d
#pragma once

#include "kernels/cuda/affine.cuh"
#include "kernels/cuda/packed_shape.cuh"

namespace sdpa {

// What an integer of K is too large by: one under the exponent bits of 1024 (bf16: 128) is that number plus the
// integer, exactly.
constexpr float kOffset = kHalf ? 1024.f : kBits == 4 ? 128.f : 0.f;
constexpr unsigned kMagic = kHalf ? 0x64006400 : 0x43004300;

// Elements of 4 bits, at bit 4j of both halves, plus kOffset.
__device__ inline unsigned pair_of_4_bits(unsigned x, int j) {
  return select_or(x >> 4 * j, 0x000f000f, kMagic);
}

// Elements of 8 bits, of bytes `low` and `high`. bf16: x = n + 128 below 128, 2 n from there on; n = min(x - 128, x / 2).
__device__ inline unsigned pair_of_8_bits(unsigned w, int low, int high) {
  const unsigned x = __byte_perm(w, kMagic, 0x5050 | low | high << 8);
  if constexpr (kHalf) return x;
  const unsigned below = multiply_add_pair(x, 0x3f803f80, 0xc300c300);
  const unsigned above = multiply_add_pair(x, 0x3f003f00, 0x80008000);
  unsigned n;
  asm("min.bf16x2 %0, %1, %2;" : "=r"(n) : "r"(below), "r"(above));
  return n;
}

// Elements of V, from integers plus kOffset.
__device__ inline unsigned dequantized(unsigned x, Affine g) {
  if constexpr (kOffset != 0.f)
    x = multiply_add_pair(x, kHalf ? 0x3c003c00 : 0x3f803f80, kHalf ? 0xe400e400 : 0xc300c300);
  return multiply_add_pair(x, g.scale, g.bias);
}

}  // namespace sdpa
