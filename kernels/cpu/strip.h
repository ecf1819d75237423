// Rows of decode that share what is read of K and V.
#pragma once

#include <type_traits>

#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

constexpr int kSums = W >= 16 ? 16 : 8;  // accumulators: they hide the latency of multiply-add
constexpr int kStrip = 8;                // rows at most

// Calls f with the number of rows that a strip of `rows` rows is computed as: 1, 2, 4 or 8.
template <class F>
SDPA_INLINE void with_strip(int rows, F f) {
  if (rows > 4) return f(std::integral_constant<int, 8>{});
  if (rows > 2) return f(std::integral_constant<int, 4>{});
  if (rows > 1) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 1>{});
}

// Where a strip of R rows has the score or weight of row r and key j: [n / N, R, N].
template <int R>
SDPA_INLINE int strip_index(int r, int j) {
  constexpr int N = kSums / R;
  return (j / N * R + r) * N + j % N;
}

}  // namespace sdpa::cpu::SDPA_ISA
