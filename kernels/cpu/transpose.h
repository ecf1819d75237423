// Lane exchanges between vectors, in log2(W) stages: transposing W vectors, and summing across lanes of several.
#pragma once

#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

// Upper false: lanes l with (l & S) == 0 from a[l], the others from b[l - S].
// Upper true:  lanes l with (l & S) == 0 from a[l + S], the others from b[l].
template <int S, bool Upper, int... L>
SDPA_INLINE Vec exchange(Vec a, Vec b, std::integer_sequence<int, L...>) {
  if constexpr (Upper) return __builtin_shufflevector(a, b, ((L & S) ? W + L : L + S)...);
  return __builtin_shufflevector(a, b, ((L & S) ? W + L - S : L)...);
}
template <int S, bool Upper>
SDPA_INLINE Vec exchange(Vec a, Vec b) {
  return exchange<S, Upper>(a, b, std::make_integer_sequence<int, W>{});
}

// Where lane l of one half of the terms of a fold comes from, among the 2 W lanes of a and b. x86 has an instruction
// without a table of lanes for each: neighbours take turns within 16 bytes, then pieces of 16 bytes do.
constexpr int fold_lane(int S, int half, int l) {
  if (S == 1) return l / 4 * 4 + l % 4 / 2 + 2 * half + l % 2 * W;
  if (S == 2) return l / 4 * 4 + l % 2 + 2 * half + l % 4 / 2 * W;
  const int piece = l / 4, pieces = W >= 8 ? W / 8 : 1;  // of each of a and b
  return (2 * (piece % pieces) + half) * 4 + l % 4 + piece / pieces * W;
}
template <int S, int half, int... L>
SDPA_INLINE Vec fold_half(Vec a, Vec b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, fold_lane(S, half, L)...);
}
// Partial sums of S values in a, and of S in b, become those of the 2 S values, half as many of each.
template <int S>
SDPA_INLINE Vec fold(Vec a, Vec b) {
  constexpr auto lanes = std::make_integer_sequence<int, W>{};
  return fold_half<S, 0>(a, b, lanes) + fold_half<S, 1>(a, b, lanes);
}

template <int S>
SDPA_INLINE void transpose_stage(Vec (&r)[W]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const Vec a = r[i], b = r[i + S];
    r[i] = exchange<S, false>(a, b);
    r[i + S] = exchange<S, true>(a, b);
  }
}

// Lane l of r[i] becomes lane i of r[l].
SDPA_INLINE void transpose(Vec (&r)[W]) {
  transpose_stage<1>(r);
  transpose_stage<2>(r);
  if constexpr (W >= 8) transpose_stage<(W >= 8 ? 4 : 1)>(r);
  if constexpr (W >= 16) transpose_stage<(W >= 16 ? 8 : 1)>(r);
}

}  // namespace sdpa::cpu::SDPA_ISA
