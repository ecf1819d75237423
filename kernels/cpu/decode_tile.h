// The products of decode on a tile of keys: R rows at a time against K and V, which are read as they lie in memory, in
// order, and widened or paired in registers. Both hold kSums accumulators; what they read once is used for all R rows.
#pragma once

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/decode_operands.h"
#include "kernels/cpu/strip.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

// Bytes of V, in L1, that are multiplied while columns of O are in registers.
constexpr int kTogether = 16 << 10;

// Lane l of a[i] = the sum of the lanes of a[i * W + l].
template <int S = 1, int N = kSums>
SDPA_INLINE void sum_lanes(Vec (&a)[kSums]) {
#pragma GCC unroll 8
  for (int i = 0; i < N / 2; ++i) a[i] = fold<S>(a[2 * i], a[2 * i + 1]);
  if constexpr (2 * S < W) sum_lanes<2 * S, N / 2>(a);
}

// S [R, n] = Q [R, D] @ K [n, D]^T in the order of strip_index. A short last group repeats its last key.
template <int R, bool First, typename T, typename E>
void tile_scores(const Matrix<T>& K, int n, int D, const E* Q, int ldq, float* S, Ahead& ahead) {
  using X = Operand<T>;
  constexpr int N = kSums / R;  // keys at a time
  constexpr int kBytes = N * X::kValues * int(sizeof(T));
  constexpr int kEvery = kBytes < kLine ? kLine / kBytes : 1;
  const int asks = ahead.at_once(N);
  Lines lines{};
  for (int j = 0; j < n; j += N) {
    if (First && (j & (asks - 1)) == 0) lines = ahead.next(n - j < asks ? n - j : asks);
    const T* k[N];
    for (int i = 0; i < N; ++i) k[i] = K[j + i < n ? j + i : n - 1];
    Vec sums[kSums] = {};
    int d = 0;
    for (; d + X::kValues <= D; d += X::kValues) {
      if (First && d / X::kValues % kEvery == 0) lines.fetch<kEvery * kBytes / kLine>();
      Vec x[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) x[i] = X::load(k[i] + d);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        Vec q = X::load_own(Q + r * ldq + d);
        hold(q);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) sums[r * N + i] = X::add(sums[r * N + i], q, x[i]);
      }
    }
    if (d < D) {
      if (First) lines.fetch<kEvery * kBytes / kLine>();
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        const Vec x = X::load_n(k[i] + d, D - d);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          sums[r * N + i] = X::add(sums[r * N + i], X::load_own(Q + r * ldq + d), x);
      }
    }
    sum_lanes(sums);
#pragma GCC unroll 2
    for (int i = 0; i < kSums / W; ++i) store(S + j * R + i * W, sums[i]);
  }
}

// O [R, C * W] += P [R, n] @ V [n, C * W], of which V has `columns`: O is in registers from the first key to the last.
// P is that of R of the `Strip` rows of a strip, and of keys from a whole group on.
template <int R, int Strip, int C, bool Whole, bool First, typename T, typename E>
SDPA_INLINE void tile_columns(const Matrix<T>& V, int n, int columns, const E* P, float* O, int ldo,
                              Lines& lines) {
  using X = Operand<T>;
  constexpr int kBytes = X::kKeys * C * W * int(sizeof(T));
  constexpr int kEvery = kBytes < kLine ? kLine / kBytes : 1;
  Vec o[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) o[r][c] = load(O + r * ldo + c * W);
  }
  const auto multiply = [&](auto all, int j) __attribute__((always_inline)) {
    if (First && j / X::kKeys % kEvery == 0) lines.fetch<kEvery * kBytes / kLine>();
    Vec v[C];
    X::template load_keys<all, Whole>(V, j, columns, v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec p = X::splat_keys(P + strip_index<Strip>(r, j));
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) o[r][c] = X::add(o[r][c], p, v[c]);
    }
  };
  int j = 0;
  for (; j + X::kKeys <= n; j += X::kKeys) multiply(std::true_type{}, j);
  if (j < n) multiply(std::false_type{}, j);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(O + r * ldo + c * W, o[r][c]);
  }
}

// O [R, Dv] += P [R, n] @ V [n, Dv], where P, in the order of strip_index, has zeros for what its last group lacks.
template <int R, bool First, typename T, typename E>
void tile_output(const Matrix<T>& V, int n, int Dv, const E* P, float* O, int ldo, Ahead& ahead) {
  constexpr int kLeast = Operand<T>::kColumns / W;
  constexpr bool kAll = R <= kSums / 2 || !Operand<T>::kCheap;
  constexpr int kRows = kAll ? R : kSums / 2;  // at a time
  constexpr int kMost = kSums / kRows < 4 ? kSums / kRows : 4;
  constexpr int C = kMost > kLeast ? kMost : kLeast;
  static_assert(R <= 2 * kRows);
  constexpr int kLeastKeys = kSums / R > 4 ? kSums / R : 4;
  const int most = kTogether / (Dv * int(sizeof(T))) / kLeastKeys * kLeastKeys;
  const int N = most < kLeastKeys ? kLeastKeys : most;
  for (int j = 0; j < n; j += N) {
    const int keys = n - j < N ? n - j : N;
    Lines lines = First ? ahead.next(keys) : Lines{};
    const auto block = [&](auto wide, auto whole, int d) {
      const Matrix<T> at{V[j] + d, V.step};
      const E* p = P + strip_index<R>(0, j);
      tile_columns<kRows, R, wide, whole, First>(at, keys, Dv - d, p, O + d, ldo, lines);
      if constexpr (R > kRows)
        tile_columns<kRows, R, wide, whole, false>(at, keys, Dv - d, p + strip_index<R>(kRows, 0),
                                                   O + kRows * ldo + d, ldo, lines);
    };
    using Wide = std::integral_constant<int, C>;
    using Least = std::integral_constant<int, kLeast>;
    int d = 0;
    for (; d + C * W <= Dv; d += C * W) block(Wide{}, std::true_type{}, d);
    for (; d + kLeast * W <= Dv; d += kLeast * W) block(Least{}, std::true_type{}, d);
    if (d < Dv) block(Least{}, std::false_type{}, d);
  }
}

}  // namespace sdpa::cpu::SDPA_ISA
