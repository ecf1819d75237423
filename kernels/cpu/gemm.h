// The register-blocked product behind S = Q K^T and O = O * alpha + P V.
#pragma once

#include "kernels/cpu/pack.h"

namespace sdpa::cpu::SDPA_ISA {

// C [MR, N * W] = A [MR, depth] * B [depth, N * W] (+ C * alpha [MR] when alpha is given)
template <int N>
SDPA_INLINE void micro(int depth, const float* A, int lda, const float* B, float* C, int ldc,
                       const float* alpha) {
  Vec acc[MR][N];
  if (alpha) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[i][v] = load(C + i * ldc + v * W) * alpha[i];
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[i][v] = Vec{};
    }
  }
  for (int k = 0; k < depth; ++k) {
    Vec b[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) b[v] = load(B + (k * N + v) * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[i][v] += A[i * lda + k] * b[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) store(C + i * ldc + v * W, acc[i][v]);
  }
}

inline void micro(int n, int depth, const float* A, int lda, const float* B, float* C, int ldc,
                  const float* alpha) {
  static_assert(NV <= 3);
  if (n == 1) return micro<1>(depth, A, lda, B, C, ldc, alpha);
  if (n == 2) return micro<2>(depth, A, lda, B, C, ldc, alpha);
  return micro<NV>(depth, A, lda, B, C, ldc, alpha);
}

}  // namespace sdpa::cpu::SDPA_ISA
