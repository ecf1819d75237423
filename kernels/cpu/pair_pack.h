// Copies of bfloat16 tiles in panels of pairs: [panel][depth / 2][width][2].
#pragma once

#include "kernels/cpu/pack.h"

namespace sdpa::cpu::SDPA_ISA {

static_assert(W == 16);

// Pairs [0, W) of the n values at p, zeros behind them, as bits; nothing past p[n - 1] is read.
SDPA_INLINE Vec load_pairs(const bf16* p, int n) {
  if (n >= 2 * W) return bits_as<Vec>(_mm512_loadu_si512(p));
  return bits_as<Vec>(_mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << (n < 0 ? 0 : n)) - 1), p));
}

// K tile [n, D] -> [panel][D / 2][panel width][2], with zeros for keys beyond n and values up to a multiple of `step`.
template <int N, typename Rows>
void pack_k_pairs(const Rows& K, int n, int D, int step, bf16* to, bf16* tmp) {
  const int all = vectors(n), pairs = round_up(D, step) / 2;
  for (int v = 0; v < all; ++v) {
    const int panel = v / N, wide = panel_vectors<N>(panel, all);
    bf16* dst = to + (size_t(panel) * N * pairs + v % N) * 2 * W;
    const bf16* rows[W];
    const int present = n - v * W < W ? n - v * W : W;
    for (int j = 0; j < present; ++j) rows[j] = K.row(v * W + j, D, tmp + size_t(j) * D);
    for (int d = 0; d < pairs; d += W) {
      Vec r[W];
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j)
        r[j] = j < present ? load_pairs(rows[j] + 2 * d, D - 2 * d) : Vec{};
      transpose(r);
      const int left = pairs - d < W ? pairs - d : W;
      for (int l = 0; l < left; ++l)
        _mm512_storeu_si512(dst + size_t(d + l) * wide * 2 * W, bits_as<__m512i>(r[l]));
    }
  }
}

// The first n values at p, zeros behind them, each in the low half of a lane.
SDPA_INLINE __m512i load_low_halves(const bf16* p, int n) {
  if (n >= W) return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
}

// V tile [n, Dv] -> [panel][n / 2][panel width][2], with zeros for keys up to a multiple of `step` and columns beyond Dv.
template <int N, typename Rows>
void pack_v_pairs(const Rows& V, int n, int step, int Dv, bf16* to, bf16* tmp) {
  const int all = vectors(Dv), pairs = round_up(n, step) / 2;
  for (int j = 0; j < pairs; ++j) {
    const int present = n - 2 * j;
    const bf16* first = present > 0 ? V.row(2 * j, Dv, tmp) : nullptr;
    const bf16* second = present > 1 ? V.row(2 * j + 1, Dv, tmp + Dv) : nullptr;
    for (int v = 0; v < all; ++v) {
      const int panel = v / N, wide = panel_vectors<N>(panel, all);
      const int left = Dv - v * W;
      __m512i low = first ? load_low_halves(first + v * W, left) : _mm512_setzero_si512();
      if (second)
        low = _mm512_or_si512(low, _mm512_slli_epi32(load_low_halves(second + v * W, left), 16));
      _mm512_storeu_si512(to + (size_t(panel) * N * pairs + size_t(j) * wide + v % N) * 2 * W, low);
    }
  }
}

// What tiles of pairs have in common: panels of up to N_ vectors, a depth of whole steps.
template <int N_, int step>
struct PairPanels {
  using E = bf16;
  static constexpr int N = N_, kDepth = step;

  static void pack_q(const bf16* row, int64_t col, int D, bf16* to) {
    for (int d = 0; d < D; ++d) to[d] = row[d * col];
  }
  template <typename Rows>
  static void pack_k(const Rows& K, int n, int D, bf16* to, bf16* tmp) {
    pack_k_pairs<N>(K, n, D, step, to, tmp);
  }
  template <typename Rows>
  static void pack_v(const Rows& V, int n, int Dv, bf16* to, bf16* tmp) {
    pack_v_pairs<N>(V, n, step, Dv, to, tmp);
  }
};

// P, rounded
SDPA_INLINE void store_weights(bf16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      bits_as<__m256i>(_mm512_cvtneps_pbh(bits_as<__m512>(v))));
}

}  // namespace sdpa::cpu::SDPA_ISA
