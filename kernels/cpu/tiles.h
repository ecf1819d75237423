// How prefill keeps its operands, and the product of them: FloatTiles in float32 for every T; PairTiles in bfloat16,
// for instruction sets that multiply pairs of it and add them up in float32.
//
//   A  [rows, lda] of E                 Qs and P: rows in whole strips of R, zeros beyond the depth
//   B  [panel][depth / n][width][n]     Ks and Vs: panels of up to N vectors; n = 1, or pairs of the depth side by side
//   C  [rows, ldc] of float             S and O
#pragma once

#include "kernels/cpu/gemm.h"

#if defined(__AMX_BF16__)
#include "kernels/cpu/amx.h"
#elif defined(__AVX512BF16__)
#include "kernels/cpu/pairs.h"
#endif

namespace sdpa::cpu::SDPA_ISA {

// A leading dimension of n values: an odd number of cache lines, so that rows of a strip do not share cache sets.
template <typename E = float>
SDPA_INLINE int leading(int n) {
  constexpr int kLine = 64 / sizeof(E);
  return ((n + kLine - 1) / kLine | 1) * kLine;
}

struct FloatTiles {
  using E = float;
  // Rows of a strip, vectors of a panel, step of the depth.
  static constexpr int R = MR, N = NV, kDepth = 1;

  struct Session {};  // what a thread holds while it multiplies

  template <typename T>
  static void pack_q(const T* row, int64_t col, int D, float* to) {
    if (col == 1) {
      for (int d = 0; d < D; d += W) store_n(to + d, load_n(row + d, D - d), D - d);
    } else {
      for (int d = 0; d < D; ++d) to[d] = widen(row[d * col]);
    }
  }
  template <typename Rows>
  static void pack_k(const Rows& K, int n, int D, float* to, typename Rows::E* tmp) {
    cpu::SDPA_ISA::pack_k(K, n, D, to, tmp);
  }
  template <typename Rows>
  static void pack_v(const Rows& V, int n, int Dv, float* to, typename Rows::E* tmp) {
    cpu::SDPA_ISA::pack_v(V, n, Dv, to, tmp);
  }
  // C = A B (+ C * alpha), of one strip and a panel of `wide` vectors
  static void multiply(int wide, int depth, const float* A, int lda, const float* B, float* C,
                       int ldc, const float* alpha) {
    micro(wide, depth, A, lda, B, C, ldc, alpha);
  }
};

template <typename T>
struct TilesOf {
  using type = FloatTiles;
};
#if defined(__AVX512BF16__)
template <>
struct TilesOf<bf16> {
  using type = PairTiles;
};
#endif

}  // namespace sdpa::cpu::SDPA_ISA
