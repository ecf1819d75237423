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

// Half of the lanes hold sums of neighbours (S apart) of a, the other half of b.
template <int S>
SDPA_INLINE Vec fold(Vec a, Vec b) {
  return exchange<S, false>(a, b) + exchange<S, true>(a, b);
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
