// Copies of K, V and Q tiles in the order the micro-kernels read them. A panel is up to N vectors wide; the last
// panel of a tile can be narrower. float16 and bfloat16 are widened here, once per tile, not per use.
#pragma once

#include "kernels/cpu/operand_rows.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

template <int N = NV>
SDPA_INLINE int panel_vectors(int panel, int all) {
  return all - panel * N < N ? all - panel * N : N;
}

// K tile [n, D] -> Kp [panel][D][panel width], keys beyond n as zeros.
template <typename Rows>
void pack_k(const Rows& K, int n, int D, float* Kp, typename Rows::E* tmp) {
  const int all = vectors(n);
  for (int v = 0; v < all; ++v) {
    const int panel = v / NV, width = panel_vectors(panel, all) * W;
    float* dst = Kp + size_t(panel) * NV * W * D + (v % NV) * W;
    const typename Rows::E* rows[W];
    const int present = n - v * W < W ? n - v * W : W;
    for (int j = 0; j < present; ++j) rows[j] = K.row(v * W + j, D, tmp + size_t(j) * D);
    for (int d = 0; d < D; d += W) {
      const int left = D - d;
      Vec r[W];
      if (present == W && left >= W) {
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) r[j] = load(rows[j] + d);
      } else {
        for (int j = 0; j < W; ++j) r[j] = j < present ? load_n(rows[j] + d, left) : Vec{};
      }
      transpose(r);
      if (left >= W) {
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) store(dst + (d + l) * width, r[l]);
      } else {
        for (int l = 0; l < left; ++l) store(dst + (d + l) * width, r[l]);
      }
    }
  }
}

// V tile [n, Dv] -> Vp [panel][n][panel width], columns beyond Dv as zeros.
template <typename Rows>
void pack_v(const Rows& V, int n, int Dv, float* Vp, typename Rows::E* tmp) {
  const int all = vectors(Dv);
  for (int j = 0; j < n; ++j) {
    const auto* v_row = V.row(j, Dv, tmp);
    for (int v = 0; v < all; ++v) {
      const int panel = v / NV, width = panel_vectors(panel, all) * W;
      float* dst = Vp + size_t(panel) * NV * W * n + j * width + (v % NV) * W;
      store(dst, load_n(v_row + v * W, Dv - v * W));
    }
  }
}

}  // namespace sdpa::cpu::SDPA_ISA
