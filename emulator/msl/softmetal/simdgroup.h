// metal_simdgroup: the 32 lanes of a simdgroup meet in each of these functions.
#pragma once

#include "math.h"

namespace metal {

template <class T>
METAL_FUNC T softmetal_exchange(T value, uint by, softmetal::Shuffle kind) {
  static_assert(sizeof(T) <= 8, "one lane's value");
  ulong bits = 0;
  if constexpr (sizeof(T) == 8) {
    bits = __builtin_bit_cast(ulong, value);
  } else if constexpr (sizeof(T) == 4) {
    bits = __builtin_bit_cast(uint, value);
  } else if constexpr (sizeof(T) == 2) {
    bits = __builtin_bit_cast(ushort, value);
  } else {
    bits = __builtin_bit_cast(uchar, value);
  }
  bits = softmetal_shuffle(bits, by, kind, SOFTMETAL_SITE);
  if constexpr (sizeof(T) == 8) {
    return __builtin_bit_cast(T, bits);
  } else if constexpr (sizeof(T) == 4) {
    return __builtin_bit_cast(T, uint(bits));
  } else if constexpr (sizeof(T) == 2) {
    return __builtin_bit_cast(T, ushort(bits));
  } else {
    return __builtin_bit_cast(T, uchar(bits));
  }
}
template <class T, int N>
METAL_FUNC vec<T, N> softmetal_exchange(vec<T, N> value, uint by, softmetal::Shuffle kind) {
  for (int i = 0; i < N; ++i) value[i] = softmetal_exchange(T(value[i]), by, kind);
  return value;
}

template <class T>
METAL_FUNC T simd_shuffle(T value, ushort lane) {
  return softmetal_exchange(value, lane, softmetal::Shuffle::Lane);
}
template <class T>
METAL_FUNC T simd_shuffle_xor(T value, ushort mask) {
  return softmetal_exchange(value, mask, softmetal::Shuffle::Xor);
}
template <class T>
METAL_FUNC T simd_shuffle_up(T value, ushort delta) {
  return softmetal_exchange(value, delta, softmetal::Shuffle::Up);
}
template <class T>
METAL_FUNC T simd_shuffle_down(T value, ushort delta) {
  return softmetal_exchange(value, delta, softmetal::Shuffle::Down);
}
template <class T>
METAL_FUNC T simd_shuffle_rotate_up(T value, ushort delta) {
  return softmetal_exchange(value, delta, softmetal::Shuffle::RotateUp);
}
template <class T>
METAL_FUNC T simd_shuffle_rotate_down(T value, ushort delta) {
  return softmetal_exchange(value, delta, softmetal::Shuffle::RotateDown);
}
template <class T>
METAL_FUNC T simd_broadcast(T value, ushort lane) {
  return softmetal_exchange(value, lane, softmetal::Shuffle::Broadcast);
}
template <class T>
METAL_FUNC T simd_broadcast_first(T value) {
  return softmetal_exchange(value, 0, softmetal::Shuffle::BroadcastFirst);
}

template <class T>
METAL_FUNC T softmetal_reduce(T value, softmetal::Reduction kind) {
  if constexpr (is_floating_point_v<T>) {
    return T(softmetal_reduce_float(float(value), kind, SOFTMETAL_SITE));
  } else {
    return T(softmetal_reduce_integer(long(value), kind, T(-1) > T(0), SOFTMETAL_SITE));
  }
}
template <class T, int N>
METAL_FUNC vec<T, N> softmetal_reduce(vec<T, N> value, softmetal::Reduction kind) {
  for (int i = 0; i < N; ++i) value[i] = softmetal_reduce(T(value[i]), kind);
  return value;
}

template <class T>
METAL_FUNC T simd_sum(T value) {
  return softmetal_reduce(value, softmetal::Reduction::Sum);
}
template <class T>
METAL_FUNC T simd_product(T value) {
  return softmetal_reduce(value, softmetal::Reduction::Product);
}
template <class T>
METAL_FUNC T simd_max(T value) {
  return softmetal_reduce(value, softmetal::Reduction::Max);
}
template <class T>
METAL_FUNC T simd_min(T value) {
  return softmetal_reduce(value, softmetal::Reduction::Min);
}
template <class T>
METAL_FUNC T simd_and(T value) {
  return softmetal_reduce(value, softmetal::Reduction::And);
}
template <class T>
METAL_FUNC T simd_or(T value) {
  return softmetal_reduce(value, softmetal::Reduction::Or);
}
template <class T>
METAL_FUNC T simd_xor(T value) {
  return softmetal_reduce(value, softmetal::Reduction::Xor);
}
METAL_FUNC bool simd_all(bool value) {
  return softmetal_reduce_integer(value, softmetal::Reduction::All, 1, SOFTMETAL_SITE) != 0;
}
METAL_FUNC bool simd_any(bool value) {
  return softmetal_reduce_integer(value, softmetal::Reduction::Any, 1, SOFTMETAL_SITE) != 0;
}

template <class T>
METAL_FUNC T softmetal_scan(T value, bool inclusive) {
  if constexpr (is_floating_point_v<T>) {
    return T(softmetal_scan_float(float(value), inclusive, SOFTMETAL_SITE));
  } else {
    return T(softmetal_scan_integer(long(value), inclusive, SOFTMETAL_SITE));
  }
}
template <class T>
METAL_FUNC T simd_prefix_inclusive_sum(T value) {
  return softmetal_scan(value, true);
}
template <class T>
METAL_FUNC T simd_prefix_exclusive_sum(T value) {
  return softmetal_scan(value, false);
}

// Bit i of the vote: the value of lane i.
struct simd_vote {
  ulong bits;
  typedef ulong vote_t;
  constexpr explicit simd_vote(vote_t v) : bits(v) {}
  constexpr explicit operator vote_t() const thread { return bits; }
  constexpr bool all() const thread { return (bits & 0xffffffffu) == 0xffffffffu; }
  constexpr bool any() const thread { return bits != 0; }
};
METAL_FUNC simd_vote simd_ballot(bool value) {
  return simd_vote(softmetal_ballot(value, SOFTMETAL_SITE));
}

}  // namespace metal
