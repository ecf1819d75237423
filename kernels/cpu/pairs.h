// Tiles of bfloat16 whose pairs are multiplied and added up in float32 (AVX-512 BF16). Subnormal values count as 0.
#pragma once

#include "kernels/cpu/pair_pack.h"

namespace sdpa::cpu::SDPA_ISA {

struct PairTiles : PairPanels<NV, 2> {
  static constexpr int R = MR;

  struct Session {};

  static void multiply(int wide, int depth, const bf16* A, int lda, const bf16* B, float* C,
                       int ldc, const float* alpha) {
    static_assert(N == 3);
    if (wide == 1) return strip<1>(depth, A, lda, B, C, ldc, alpha);
    if (wide == 2) return strip<2>(depth, A, lda, B, C, ldc, alpha);
    strip<3>(depth, A, lda, B, C, ldc, alpha);
  }

 private:
  template <int wide>
  SDPA_INLINE static void strip(int depth, const bf16* A, int lda, const bf16* B, float* C, int ldc,
                                const float* alpha) {
    __m512 acc[R][wide];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < wide; ++v)
        acc[i][v] =
            alpha ? _mm512_mul_ps(_mm512_loadu_ps(C + i * ldc + v * W), _mm512_set1_ps(alpha[i]))
                  : _mm512_setzero_ps();
    }
    for (int k = 0; k < depth; k += 2) {
      __m512bh b[wide];
#pragma GCC unroll 4
      for (int v = 0; v < wide; ++v)
        b[v] = bits_as<__m512bh>(_mm512_loadu_si512(B + (int64_t(k / 2) * wide + v) * 2 * W));
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        int32_t pair;
        __builtin_memcpy(&pair, A + i * lda + k, sizeof(pair));
        const __m512bh a = bits_as<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 4
        for (int v = 0; v < wide; ++v) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], a, b[v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < wide; ++v) _mm512_storeu_ps(C + i * ldc + v * W, acc[i][v]);
    }
  }
};

}  // namespace sdpa::cpu::SDPA_ISA
