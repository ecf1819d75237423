// Lane exchanges between vectors, in log2(W) stages: transposing W vectors, and summing across lanes of several.
#pragma once

#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

// Where lane l of one half of the lanes of a and b comes from, among all 2 W, as they take turns: neighbours within 16 bytes
// (S = 1), pairs of them (2), or pieces of 16 bytes (4, 8). x86 has an instruction without a table of lanes for each.
constexpr int turn_lane(int S, int half, int l) {
  if (S == 1) return l / 4 * 4 + l % 4 / 2 + 2 * half + l % 2 * W;
  if (S == 2) return l / 4 * 4 + l % 2 + 2 * half + l % 4 / 2 * W;
  const int piece = l / 4, pieces = W >= 8 ? W / 8 : 1;  // of each of a and b
  return (2 * (piece % pieces) + half) * 4 + l % 4 + piece / pieces * W;
}
template <int S, int half, int... L>
SDPA_INLINE Vec take_turns(Vec a, Vec b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, turn_lane(S, half, L)...);
}
template <int S, int half>
SDPA_INLINE Vec take_turns(Vec a, Vec b) {
  return take_turns<S, half>(a, b, std::make_integer_sequence<int, W>{});
}

struct Plus {
  SDPA_INLINE Vec operator()(Vec a, Vec b) const { return a + b; }
};
struct Larger {
  SDPA_INLINE Vec operator()(Vec a, Vec b) const { return max_keep(a, b); }
};

// Partial results of S values in a, and of S in b, become those of the 2 S values, half as many of each.
template <int S, class Join = Plus>
SDPA_INLINE Vec fold(Vec a, Vec b) {
  return Join()(take_turns<S, 0>(a, b), take_turns<S, 1>(a, b));
}

// Vectors S apart take turns, the lower half of their lanes first.
template <int S>
SDPA_INLINE void turn_stage(Vec (&r)[W]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const Vec a = r[i], b = r[i + S];
    r[i] = take_turns<S, 0>(a, b);
    r[i + S] = take_turns<S, 1>(a, b);
  }
}

// Lane l of r[i] becomes lane i of r[l].
SDPA_INLINE void transpose(Vec (&r)[W]) {
  turn_stage<1>(r);
  turn_stage<2>(r);
  if constexpr (W >= 8) turn_stage<(W >= 8 ? 4 : 1)>(r);
  if constexpr (W >= 16) turn_stage<(W >= 16 ? 8 : 1)>(r);
#pragma GCC unroll 4
  for (int i = 0; i < W; i += 4) {  // four lanes of a piece come out in the order 0 2 1 3
    const Vec second = r[i + 1];
    r[i + 1] = r[i + 2];
    r[i + 2] = second;
  }
}

}  // namespace sdpa::cpu::SDPA_ISA
