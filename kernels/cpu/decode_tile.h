// The products of decode on a tile of keys: R rows at a time against K and V, which are read as they lie in memory, in
// order, and widened in registers. Both hold kSums accumulators; what they read once is used for all R rows.
#pragma once

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

constexpr int kSums = W >= 16 ? 16 : 8;  // accumulators: they hide the latency of multiply-add
constexpr int kStrip = 8;                // rows at most that share what is read

// Rows of K or V: row j at `at + j * step`.
template <typename T>
struct Matrix {
  const T* at;
  int64_t step;

  const T* operator[](int64_t j) const { return at + j * step; }
};

// Lane l of a[i] = the sum of the lanes of a[i * W + l].
template <int S = 1, int N = kSums>
SDPA_INLINE void sum_lanes(Vec (&a)[kSums]) {
#pragma GCC unroll 8
  for (int i = 0; i < N / 2; ++i) a[i] = fold<S>(a[2 * i], a[2 * i + 1]);
  if constexpr (2 * S < W) sum_lanes<2 * S, N / 2>(a);
}

// S [R, n] = Q [R, D] @ K [n, D]^T. Columns up to the next multiple of kSums / R are written too.
template <int R, bool First, typename T>
void tile_scores(const Matrix<T>& K, int n, int D, const float* Q, int ldq, float* S, int lds,
                 Ahead& ahead) {
  constexpr int N = kSums / R;  // keys at a time
  constexpr int kBytes = N * W * int(sizeof(T));
  constexpr int kEvery = kBytes < kLine ? kLine / kBytes : 1;
  for (int j = 0; j < n; j += N) {
    Lines lines = First ? ahead.next(N) : Lines{};
    const T* k[N];
    for (int i = 0; i < N; ++i) k[i] = K[j + i < n ? j + i : n - 1];
    Vec sums[kSums] = {};
    int d = 0;
    for (; d + W <= D; d += W) {
      if (First && d / W % kEvery == 0) lines.fetch<kEvery * kBytes / kLine>();
      Vec x[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) x[i] = load(k[i] + d);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        Vec q = load(Q + r * ldq + d);
        hold(q);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) sums[r * N + i] += q * x[i];
      }
    }
    if (d < D) {
      if (First) lines.fetch<kEvery * kBytes / kLine>();
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        const Vec x = load_n(k[i] + d, D - d);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r * N + i] += load(Q + r * ldq + d) * x;
      }
    }
    sum_lanes(sums);
    float out[kSums];
    for (int i = 0; i < kSums / W; ++i) store(out + i * W, sums[i]);
    for (int r = 0; r < R; ++r) __builtin_memcpy(S + r * lds + j, out + r * N, N * sizeof(float));
  }
}

// O [R, C * W] += P [R, N] @ V [N, C * W], of which V has `columns`.
template <int R, int N, int C, bool Whole, bool First, typename T>
SDPA_INLINE void tile_block(const Matrix<T>& V, int columns, const float* P, int lds, float* O,
                            int ldo, Lines& lines) {
  constexpr int kLines = N * C * W * int(sizeof(T)) / kLine;
  Vec v[N][C];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      v[j][c] = Whole ? load(V[j] + c * W) : load_n(V[j] + c * W, columns - c * W);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (First && r * kLines / R < (r + 1) * kLines / R) lines.fetch<(kLines + R - 1) / R>();
    Vec o[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) o[c] = load(O + r * ldo + c * W);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      const Vec p = splat(P[r * lds + j]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) o[c] += p * v[j][c];
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(O + r * ldo + c * W, o[c]);
  }
}

// O [R, Dv] += P [R, N] @ V [N, Dv]
template <int R, int N, bool First, typename T>
SDPA_INLINE void tile_keys(const Matrix<T>& V, int Dv, const float* P, int lds, float* O, int ldo,
                           Ahead& ahead) {
  constexpr int C = W >= 16 ? 4 : 2;
  Lines lines = First ? ahead.next(N) : Lines{};
  const auto columns = [&](int d) { return Matrix<T>{V.at + d, V.step}; };
  int d = 0;
  for (; d + C * W <= Dv; d += C * W)
    tile_block<R, N, C, true, First>(columns(d), Dv - d, P, lds, O + d, ldo, lines);
  for (; d + W <= Dv; d += W)
    tile_block<R, N, 1, true, First>(columns(d), Dv - d, P, lds, O + d, ldo, lines);
  if (d < Dv) tile_block<R, N, 1, false, First>(columns(d), Dv - d, P, lds, O + d, ldo, lines);
}

// O [R, Dv] += P [R, n] @ V [n, Dv]
template <int R, bool First, typename T>
void tile_output(const Matrix<T>& V, int n, int Dv, const float* P, int lds, float* O, int ldo,
                 Ahead& ahead) {
  constexpr int N = 4;  // keys at a time
  int j = 0;
  for (; j + N <= n; j += N)
    tile_keys<R, N, First>(Matrix<T>{V[j], V.step}, Dv, P + j, lds, O, ldo, ahead);
  for (; j < n; ++j) tile_keys<R, 1, First>(Matrix<T>{V[j], V.step}, Dv, P + j, lds, O, ldo, ahead);
}

// Calls f with the number of rows that a strip of `rows` rows is computed as: 1, 2, 4 or 8.
template <class F>
SDPA_INLINE void with_strip(int rows, F f) {
  if (rows > 4) return f(std::integral_constant<int, 8>{});
  if (rows > 2) return f(std::integral_constant<int, 4>{});
  if (rows > 1) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 1>{});
}

}  // namespace sdpa::cpu::SDPA_ISA
